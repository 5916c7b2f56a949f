//! A buffer to lines. A line that is longer than [`LONGEST`] is told of once, by its beginning,
//! and passed over without being kept.

/// The longest line that is read as a row.
pub(crate) const LONGEST: usize = 64 * 1024;
/// How much of a longer line is shown.
pub(crate) const SHOWN: usize = 1_000;

/// What comes next in a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A line without its line break.
    Line(&'a [u8]),
    /// The beginning of a line that is too long.
    TooLong(&'a [u8]),
}

/// Cuts a buffer into lines.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    buffer: &'a [u8],
    /// Everything before is done with.
    at: usize,
    /// Where the last piece began, and whether a line was being passed over there.
    before: usize,
    passing_over: bool,
    /// Whether the buffer ends where the file ends, for good.
    last: bool,
}

impl<'a> Lines<'a> {
    /// `passing_over`: the buffer begins inside a line that is too long. `last`: nothing comes
    /// behind it, so that what stands behind its last line break is a line too.
    pub(crate) fn new(buffer: &'a [u8], passing_over: bool, last: bool) -> Lines<'a> {
        Lines { buffer, at: 0, before: 0, passing_over, last }
    }

    /// The next line; None when more bytes are needed.
    pub(crate) fn next(&mut self) -> Option<Piece<'a>> {
        if self.passing_over {
            match memchr::memchr(b'\n', &self.buffer[self.at..]) {
                Some(length) => {
                    self.at += length + 1;
                    self.passing_over = false;
                }
                None => {
                    self.at = self.buffer.len();
                    return None;
                }
            }
        }
        let rest = &self.buffer[self.at..];
        self.before = self.at;
        match memchr::memchr(b'\n', rest) {
            Some(length) if length <= LONGEST => {
                self.at += length + 1;
                Some(Piece::Line(rest[..length].strip_suffix(b"\r").unwrap_or(&rest[..length])))
            }
            Some(length) => {
                self.at += length + 1;
                Some(Piece::TooLong(&rest[..SHOWN]))
            }
            None if rest.len() > LONGEST => {
                self.at = self.buffer.len();
                self.passing_over = true;
                Some(Piece::TooLong(&rest[..SHOWN]))
            }
            // alone, so that the place before it is known: it may become longer yet
            None if self.last && !rest.is_empty() && self.at == 0 => {
                self.at = self.buffer.len();
                Some(Piece::Line(rest.strip_suffix(b"\r").unwrap_or(rest)))
            }
            None => None,
        }
    }

    /// Where the last piece began.
    pub(crate) fn start(&self) -> usize {
        self.before
    }

    /// Everything before this is done with.
    pub(crate) fn consumed(&self) -> usize {
        self.at
    }

    /// Whether what comes next is the rest of a line that is too long.
    pub(crate) fn passing_over(&self) -> bool {
        self.passing_over
    }

    /// Takes the last piece back: it comes again next time.
    pub(crate) fn take_back(&mut self) {
        self.at = self.before;
        self.passing_over = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in buffers of `size`, as a file is read.
    fn read(text: &[u8], size: usize) -> Vec<(bool, Vec<u8>)> {
        let (mut at, mut passing_over, mut found) = (0, false, Vec::new());
        loop {
            let end = text.len().min(at + size);
            let before = at;
            let mut lines = Lines::new(&text[at..end], passing_over, end == text.len());
            while let Some(piece) = lines.next() {
                found.push(match piece {
                    Piece::Line(line) => (false, line.to_vec()),
                    Piece::TooLong(shown) => (true, shown.to_vec()),
                });
            }
            at += lines.consumed();
            passing_over = lines.passing_over();
            if end == text.len() && (at == end || at == before) {
                return found;
            }
        }
    }

    #[test]
    fn line_breaks_of_both_kinds_and_none_at_the_end_are_fine() {
        let line = |text: &str| (false, text.as_bytes().to_vec());
        assert_eq!(read(b"a\r\n\nb\nc", LONGEST * 2), [line("a"), line(""), line("b"), line("c")]);
        assert_eq!(read(b"a\n", LONGEST * 2), [line("a")]);
        assert_eq!(read(b"", LONGEST * 2), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_told_of_once_and_the_next_one_is_read() {
        for extra in [1, 2, LONGEST, LONGEST * 5] {
            let mut text = vec![b'x'; LONGEST + extra];
            text.extend_from_slice(b"\nnext\n");
            let expected = [(true, vec![b'x'; SHOWN]), (false, b"next".to_vec())];
            assert_eq!(read(&text, LONGEST * 2), expected, "{extra}");
            assert_eq!(read(&text, LONGEST + 1), expected, "{extra}");
        }
    }

    #[test]
    fn the_longest_line_is_a_line() {
        let text = [vec![b'x'; LONGEST], b"\ny".to_vec()].concat();
        assert_eq!(read(&text, LONGEST * 2), [(false, vec![b'x'; LONGEST]), (false, b"y".to_vec())]);
    }
}
