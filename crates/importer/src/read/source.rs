//! The bytes of a file, unpacked if it is a `.csv.gz`.

use std::{
    fs::{File, Metadata},
    io::{self, BufReader, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::read::{position::digest, stream::Stream};

/// The identity of a file, independent of its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A version of a file: its identity, size and modification time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileState {
    #[serde(flatten)]
    pub(crate) identity: Identity,
    /// In bytes.
    pub(crate) size: u64,
    /// Its modification time, in nanoseconds since 1970.
    pub(crate) modified_ns: i64,
}

impl From<&Metadata> for FileState {
    fn from(metadata: &Metadata) -> FileState {
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        FileState { identity: metadata.into(), size: metadata.len(), modified_ns }
    }
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// Its content is corrupt.
    #[error("{0}")]
    Corrupt(String),
    /// The operating system could not read it now.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How to treat a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Otherwise, users who may write to `input/` could read the first line of every file that the importer
    /// may read.
    Refuse,
    Follow,
}

/// Opens a regular file. Anything else is an error, and never blocks: opening a named pipe would wait for its
/// writer.
pub(crate) fn open(path: &Path, links: Links) -> io::Result<File> {
    let regular = |metadata: Metadata| {
        if metadata.is_file() { Ok(()) } else { Err(io::Error::other(format!("is {}", what(&metadata)))) }
    };
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if links == Links::Refuse {
        regular(std::fs::symlink_metadata(path)?)?;
        flags |= OFlags::NOFOLLOW;
    } else {
        regular(std::fs::metadata(path)?)?;
    }
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    regular(file.metadata()?)?;
    Ok(file)
}

/// Whether no file has this name. If that is unknown (no permission to search the directory, a disk error),
/// the file counts as present.
pub(crate) fn is_gone(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

fn what(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        "a symbolic link, which IMPORT_FOLLOW_LINKS does not allow"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// The size and the SHA-256 of a whole file, in hexadecimal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WholeFile {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// An open file.
pub(crate) enum Source {
    /// Can be read at any position.
    Plain(File),
    /// Can only be read from its beginning.
    Gzip(Box<Gzip>),
    /// Can be read once, from what is not acknowledged on.
    Stream(Stream),
}

/// A file that is unpacked as it is read.
pub(crate) struct Gzip {
    decoder: MultiGzDecoder<BufReader<Hashed>>,
    /// Unpacked bytes that were given back.
    unread: Vec<u8>,
    /// An error that comes after the bytes read so far.
    error: Option<SourceError>,
    unpacked: u64,
}

struct Hashed {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.bytes += length as u64;
        Ok(length)
    }
}

impl Source {
    pub(crate) fn new(file: File, gzip: bool) -> Source {
        if !gzip {
            return Source::Plain(file);
        }
        let hashed = Hashed { file, hash: Sha256::new(), bytes: 0 };
        let decoder = MultiGzDecoder::new(BufReader::with_capacity(64 * 1024, hashed));
        Source::Gzip(Box::new(Gzip { decoder, unread: Vec::new(), error: None, unpacked: 0 }))
    }

    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Source::Plain(file) => Some(file),
            Source::Gzip(gzip) => Some(&gzip.decoder.get_ref().get_ref().file),
            Source::Stream(_) => None,
        }
    }

    /// Fills `buffer` from `position` on, as far as there are bytes. A `.gz` continues where it is: bytes
    /// that were not used must be given back first ([`Source::unread`]).
    pub(crate) fn fill(&mut self, position: u64, buffer: &mut [u8]) -> Result<usize, SourceError> {
        match self {
            Source::Plain(file) => {
                let mut filled = 0;
                while filled < buffer.len() {
                    match file.read_at(&mut buffer[filled..], position + filled as u64) {
                        Ok(0) => break,
                        Ok(length) => filled += length,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(filled)
            }
            Source::Gzip(gzip) => gzip.fill(buffer),
            Source::Stream(stream) => stream.fill(position, buffer),
        }
    }

    /// Gives back bytes that were read and not used.
    pub(crate) fn unread(&mut self, bytes: &[u8]) {
        if let Source::Gzip(gzip) = self {
            let following = std::mem::take(&mut gzip.unread);
            gzip.unread = [bytes, &following].concat();
        }
    }

    /// Whether an error comes after the bytes read so far.
    pub(crate) fn has_error(&self) -> bool {
        match self {
            Source::Plain(_) => false,
            Source::Gzip(gzip) => gzip.error.is_some(),
            Source::Stream(stream) => stream.error().is_some(),
        }
    }

    /// Takes that error.
    pub(crate) fn take_error(&mut self) -> Option<SourceError> {
        match self {
            Source::Plain(_) => None,
            Source::Gzip(gzip) => gzip.error.take(),
            Source::Stream(stream) => stream.error(),
        }
    }

    /// Whether everything that there is to read has arrived.
    pub(crate) fn has_arrived(&self) -> bool {
        match self {
            Source::Plain(_) | Source::Gzip(_) => true,
            Source::Stream(stream) => stream.is_ended(),
        }
    }

    /// Packed bytes of a `.gz` that were read so far.
    pub(crate) fn packed_bytes_read(&self) -> Option<u64> {
        match self {
            Source::Plain(_) | Source::Stream(_) => None,
            Source::Gzip(gzip) => Some(gzip.decoder.get_ref().get_ref().bytes),
        }
    }
}

impl Gzip {
    /// Hashes the rest of the packed file, up to `buffer.len()` bytes at a time; returns the whole file at its
    /// end.
    pub(crate) fn hash_rest(&mut self, buffer: &mut [u8]) -> io::Result<Option<WholeFile>> {
        let hashed = self.decoder.get_mut().get_mut();
        if hashed.read(buffer)? > 0 {
            return Ok(None);
        }
        Ok(Some(WholeFile { bytes: hashed.bytes, sha256: digest(&hashed.hash) }))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let mut filled = self.unread.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&self.unread[..filled]);
        self.unread.drain(..filled);
        if self.error.is_some() && filled == 0 {
            return self.error.take().map_or(Ok(0), Err);
        }
        while filled < buffer.len() && self.error.is_none() {
            match self.decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => {
                    filled += length;
                    self.unpacked += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = explain(error, self.unpacked);
                    if filled == 0 {
                        return Err(error);
                    }
                    self.error = Some(error);
                }
            }
        }
        Ok(filled)
    }
}

/// Tells errors of the decoder from those of the operating system.
pub(crate) fn explain(error: io::Error, unpacked: u64) -> SourceError {
    match error.kind() {
        _ if error.raw_os_error().is_some() => SourceError::Io(error),
        io::ErrorKind::UnexpectedEof => {
            SourceError::Corrupt(format!("the gzip file is truncated after {unpacked} unpacked bytes"))
        }
        _ => SourceError::Corrupt(format!("the gzip file is corrupt after {unpacked} unpacked bytes: {error}")),
    }
}
