//! The format of `rejected/NAME.csv`: the original lines with the reason in an additional column, `error`. The
//! file can be corrected and imported as it is; an existing `error` column is replaced.

/// Writes the header of a file of refused rows, from the header of the original file.
pub(crate) fn write_header(out: &mut Vec<u8>, line: &[u8], ends_in_error: bool) {
    out.extend_from_slice(line);
    out.extend_from_slice(if ends_in_error { b"\n" } else { b",error\n" });
}

/// Writes a refused row. `width`: the number of fields of the header.
pub(crate) fn write_row(out: &mut Vec<u8>, line: &[u8], reason: &str, ends_in_error: bool, width: usize) {
    out.extend_from_slice(if ends_in_error { without_error(line, width) } else { line });
    out.extend_from_slice(b",\"");
    for byte in reason.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\"\""),
            b'\n' | b'\r' => out.push(b' '),
            byte => out.push(byte),
        }
    }
    out.extend_from_slice(b"\"\n");
}

/// The line without its last field, when that is its `error`.
fn without_error(line: &[u8], width: usize) -> &[u8] {
    let (mut quoted, mut fields, mut last_comma) = (false, 1, 0);
    for (at, byte) in line.iter().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                fields += 1;
                last_comma = at;
            }
            _ => {}
        }
    }
    if !quoted {
        return if fields >= width { &line[..last_comma] } else { line };
    }
    // a quote is never closed, but a reason of ours may be at the end: in quotes, its quotes doubled
    own_reason(line).map_or(line, |comma| &line[..comma])
}

/// Where the comma before `"reason"` is, at the end of a line.
fn own_reason(line: &[u8]) -> Option<usize> {
    let mut at = line.strip_suffix(b"\"")?.len();
    loop {
        let quote = memchr::memrchr(b'"', &line[..at])?;
        if quote > 0 && line[quote - 1] == b'"' {
            at = quote - 1;
        } else {
            return (quote > 0 && line[quote - 1] == b',').then(|| quote - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(line: &str, reason: &str, ends_in_error: bool) -> String {
        let mut out = Vec::new();
        write_row(&mut out, line.as_bytes(), reason, ends_in_error, 3);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn the_reason_is_in_an_additional_column() {
        assert_eq!(rejected("a,b", r#"b: "b" is bad"#, false), "a,b,\"b: \"\"b\"\" is bad\"\n");
    }

    #[test]
    fn an_existing_reason_is_replaced() {
        for line in [r#"a,b,"an ""old"" one, or two""#, "a,b,old", "a,b", "a,b,", "a,b,\"\""] {
            assert_eq!(rejected(line, "new", true), "a,b,\"new\"\n", "{line}");
        }
    }

    #[test]
    fn a_line_with_an_open_quote_keeps_its_bytes_however_often_it_comes_back() {
        let mut line = r#"a,"b"#.to_owned();
        for round in 0..3 {
            let text = rejected(&line, r#""" at byte 3 ""#, round > 0);
            assert_eq!(text, "a,\"b,\"\"\"\"\" at byte 3 \"\"\"\n");
            line = text.trim_end().to_owned();
        }
    }
}
