//! Bytes that can be read only once, such as standard input. A separate thread reads them, so that nothing waits
//! for a slow writer; those that are not acknowledged are kept, to be sent again if the producer fails.

use std::{
    collections::VecDeque,
    io::{self, BufReader, Cursor, Read},
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
};

use flate2::bufread::MultiGzDecoder;

use crate::read::source::{SourceError, explain};

/// How much is read at a time.
const BLOCK_BYTES: usize = 64 * 1024;
/// How many blocks may wait to be imported.
const BLOCKS: usize = 4;
/// The first bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A stream that is being read.
pub(crate) struct Stream {
    blocks: Receiver<Result<Vec<u8>, SourceError>>,
    /// Bytes that are read and not released.
    kept: VecDeque<u8>,
    /// The position of the first of them.
    start: u64,
    /// What comes after them, if it is not the end.
    error: Option<SourceError>,
    is_ended: bool,
}

impl Stream {
    /// Starts to read. A stream that begins like a gzip file is unpacked.
    pub(crate) fn start(input: impl Read + Send + 'static) -> io::Result<Stream> {
        let (sender, blocks) = sync_channel(BLOCKS);
        let read = move || {
            // otherwise nobody wants to know any more
            if let Err(error) = send_blocks(input, &sender) {
                let _ = sender.send(Err(error));
            }
        };
        std::thread::Builder::new().name("stream".into()).spawn(read)?;
        Ok(Stream { blocks, kept: VecDeque::new(), start: 0, error: None, is_ended: false })
    }

    /// Whether the stream is known to have no more bytes than those that were received.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Fills `buffer` from `position` on with the bytes that have been received; does not wait for more.
    pub(crate) fn fill(&mut self, position: u64, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let mut skipped = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX);
        while self.kept.len() < skipped.saturating_add(buffer.len()) && !self.is_ended && self.error.is_none() {
            match self.blocks.try_recv() {
                Ok(Ok(block)) => self.kept.extend(block),
                Ok(Err(error)) => self.error = Some(error),
                Err(TryRecvError::Disconnected) => self.is_ended = true,
                Err(TryRecvError::Empty) => break,
            }
        }
        let mut filled = 0;
        let (front, back) = self.kept.as_slices();
        for part in [front, back] {
            let begin = part.len().min(skipped);
            let length = (part.len() - begin).min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&part[begin..begin + length]);
            filled += length;
            skipped -= begin;
        }
        match self.error() {
            Some(error) if filled == 0 => Err(error),
            _ => Ok(filled),
        }
    }

    /// The error that comes after the received bytes. It stays, since the stream may be read again.
    pub(crate) fn error(&self) -> Option<SourceError> {
        self.error.as_ref().map(|error| match error {
            SourceError::Corrupt(reason) => SourceError::Corrupt(reason.clone()),
            SourceError::Io(error) => SourceError::Io(io::Error::new(error.kind(), error.to_string())),
        })
    }

    /// Everything before `position` is acknowledged, and will not be read again.
    pub(crate) fn release(&mut self, position: u64) {
        let released = usize::try_from(position.saturating_sub(self.start)).unwrap_or(usize::MAX).min(self.kept.len());
        self.kept.drain(..released);
        self.start += released as u64;
    }
}

fn send_blocks(
    mut input: impl Read + Send + 'static,
    sender: &SyncSender<Result<Vec<u8>, SourceError>>,
) -> Result<(), SourceError> {
    let mut first = Vec::new();
    input.by_ref().take(GZIP.len() as u64).read_to_end(&mut first)?;
    let is_gzip = first == GZIP;
    let input = Cursor::new(first).chain(input);
    let mut input: Box<dyn Read> = if is_gzip {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(BLOCK_BYTES, input)))
    } else {
        Box::new(input)
    };
    let mut read = 0;
    loop {
        let mut block = vec![0; BLOCK_BYTES];
        match input.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                read += length as u64;
                block.truncate(length);
                if sender.send(Ok(block)).is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_gzip => return Err(explain(error, read)),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads what there is from `position` on until the stream has ended.
    fn read_from(stream: &mut Stream, mut position: u64) -> Result<Vec<u8>, SourceError> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1_000]);
        loop {
            let is_ended = stream.is_ended();
            let filled = stream.fill(position, &mut buffer)?;
            all.extend_from_slice(&buffer[..filled]);
            position += filled as u64;
            if filled == 0 && is_ended {
                return Ok(all);
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_not_released_can_be_read_again() {
        let content: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        let mut stream = Stream::start(Cursor::new(content.clone())).expect("a thread");
        assert_eq!(read_from(&mut stream, 0).expect("bytes"), content);
        assert_eq!(read_from(&mut stream, 1_234).expect("bytes"), content[1_234..]);
        stream.release(200_000);
        assert_eq!((stream.start, stream.kept.len()), (200_000, 100_000));
        assert_eq!(read_from(&mut stream, 200_001).expect("bytes"), content[200_001..]);
        // around the end of the ring
        for round in 1..=5_u64 {
            stream.kept.extend(&content[..40_000]);
            stream.release(200_000 + round * 40_000);
            let start = stream.start;
            assert_eq!(read_from(&mut stream, start).expect("bytes"), Vec::from(stream.kept.clone()));
            assert_eq!(stream.kept.len(), 100_000);
        }
    }

    #[test]
    fn a_truncated_gzip_stream_has_its_error_after_its_bytes_every_time() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        io::Write::write_all(&mut encoder, &[7; 100_000]).expect("packed");
        let packed = encoder.finish().expect("packed");
        let mut stream = Stream::start(Cursor::new(packed[..50_000].to_vec())).expect("a thread");
        for _ in 0..2 {
            let error = read_from(&mut stream, 0).expect_err("truncated").to_string();
            assert!(error.starts_with("the gzip file is truncated after "), "{error}");
            assert!(stream.kept.len() > 40_000 && stream.kept.iter().all(|byte| *byte == 7));
        }
    }
}
