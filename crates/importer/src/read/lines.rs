//! Splits a buffer into lines. A line longer than [`MAX_LINE_BYTES`] is reported once, by its first bytes,
//! and skipped.

/// The longest line that is read as a row.
pub(crate) const MAX_LINE_BYTES: usize = 64 * 1024;
/// How many bytes of a longer line are reported.
pub(crate) const SHOWN_BYTES: usize = 1_000;

/// The next piece of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A line without its line break.
    Line(&'a [u8]),
    /// The first bytes of a line that is too long.
    TooLong(&'a [u8]),
}

/// The lines of a buffer.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    buffer: &'a [u8],
    /// Everything before this is consumed.
    consumed: usize,
    /// Where the last piece began.
    piece_start: usize,
    /// Whether the rest of a line that is too long is being skipped.
    skipping: bool,
    /// Whether the buffer ends at the end of a complete file.
    last: bool,
}

impl<'a> Lines<'a> {
    /// `skipping`: the buffer begins inside a line that is too long. `last`: nothing follows it, so that the
    /// bytes after its last line break are a line too.
    pub(crate) fn new(buffer: &'a [u8], skipping: bool, last: bool) -> Lines<'a> {
        Lines { buffer, consumed: 0, piece_start: 0, skipping, last }
    }

    /// The next line; `None` if more bytes are needed.
    pub(crate) fn next(&mut self) -> Option<Piece<'a>> {
        if self.skipping {
            match memchr::memchr(b'\n', &self.buffer[self.consumed..]) {
                Some(length) => {
                    self.consumed += length + 1;
                    self.skipping = false;
                }
                None => {
                    self.consumed = self.buffer.len();
                    return None;
                }
            }
        }
        let rest = &self.buffer[self.consumed..];
        self.piece_start = self.consumed;
        match memchr::memchr(b'\n', rest) {
            Some(length) if length <= MAX_LINE_BYTES => {
                self.consumed += length + 1;
                Some(Piece::Line(rest[..length].strip_suffix(b"\r").unwrap_or(&rest[..length])))
            }
            Some(length) => {
                self.consumed += length + 1;
                Some(Piece::TooLong(&rest[..SHOWN_BYTES]))
            }
            None if rest.len() > MAX_LINE_BYTES => {
                self.consumed = self.buffer.len();
                self.skipping = true;
                Some(Piece::TooLong(&rest[..SHOWN_BYTES]))
            }
            // in a buffer of its own, so that the position before it is known: it may still become longer
            None if self.last && !rest.is_empty() && self.consumed == 0 => {
                self.consumed = self.buffer.len();
                Some(Piece::Line(rest.strip_suffix(b"\r").unwrap_or(rest)))
            }
            None => None,
        }
    }

    /// Where the last piece began.
    pub(crate) fn start(&self) -> usize {
        self.piece_start
    }

    /// Everything before this is done with.
    pub(crate) fn consumed(&self) -> usize {
        self.consumed
    }

    /// Whether the next bytes are the rest of a line that is too long.
    pub(crate) fn skipping(&self) -> bool {
        self.skipping
    }

    /// Gives the last piece back: it will be returned again.
    pub(crate) fn unread(&mut self) {
        self.consumed = self.piece_start;
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in buffers of `size`, as a file is read.
    fn read(text: &[u8], size: usize) -> Vec<(bool, Vec<u8>)> {
        let (mut at, mut skipping, mut found) = (0, false, Vec::new());
        loop {
            let end = text.len().min(at + size);
            let before = at;
            let mut lines = Lines::new(&text[at..end], skipping, end == text.len());
            while let Some(piece) = lines.next() {
                found.push(match piece {
                    Piece::Line(line) => (false, line.to_vec()),
                    Piece::TooLong(shown) => (true, shown.to_vec()),
                });
            }
            at += lines.consumed();
            skipping = lines.skipping();
            if end == text.len() && (at == end || at == before) {
                return found;
            }
        }
    }

    #[test]
    fn line_breaks_of_both_kinds_and_none_at_the_end_are_fine() {
        let line = |text: &str| (false, text.as_bytes().to_vec());
        assert_eq!(read(b"a\r\n\nb\nc", MAX_LINE_BYTES * 2), [line("a"), line(""), line("b"), line("c")]);
        assert_eq!(read(b"a\n", MAX_LINE_BYTES * 2), [line("a")]);
        assert_eq!(read(b"", MAX_LINE_BYTES * 2), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_reported_once_and_the_next_one_is_read() {
        for extra in [1, 2, MAX_LINE_BYTES, MAX_LINE_BYTES * 5] {
            let mut text = vec![b'x'; MAX_LINE_BYTES + extra];
            text.extend_from_slice(b"\nnext\n");
            let expected = [(true, vec![b'x'; SHOWN_BYTES]), (false, b"next".to_vec())];
            assert_eq!(read(&text, MAX_LINE_BYTES * 2), expected, "{extra}");
            assert_eq!(read(&text, MAX_LINE_BYTES + 1), expected, "{extra}");
        }
    }

    #[test]
    fn the_longest_line_is_a_line() {
        let text = [vec![b'x'; MAX_LINE_BYTES], b"\ny".to_vec()].concat();
        assert_eq!(read(&text, MAX_LINE_BYTES * 2), [(false, vec![b'x'; MAX_LINE_BYTES]), (false, b"y".to_vec())]);
    }
}
