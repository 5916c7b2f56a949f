//! Rows out of Postgres in its binary COPY format: the cheapest way out, a row at a time.

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use sqlx::PgConnection;
use uuid::Uuid;

/// Microseconds from 1970 to 2000, where Postgres' timestamps begin.
const EPOCH_2000: i64 = 946_684_800_000_000;
/// What every COPY begins with.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Gives each row of `COPY source TO STDOUT` to `row`. Returns how many there were.
pub(super) async fn rows(
    tx: &mut PgConnection,
    source: &str,
    mut row: impl FnMut(&mut Fields<'_>) -> Result<()>,
) -> Result<u64> {
    let mut chunks = tx.copy_out_raw(&format!("COPY {source} TO STDOUT (FORMAT binary)")).await?;
    let mut parser = Parser::default();
    let mut count = 0;
    while let Some(chunk) = chunks.try_next().await? {
        parser.take(&chunk, &mut |fields| {
            count += 1;
            row(fields)
        })?;
    }
    ensure!(parser.ended, "the server ended a COPY early");
    Ok(count)
}

/// Puts rows together: a chunk need not be one.
#[derive(Debug, Default)]
struct Parser {
    /// What is not parsed yet.
    rest: Vec<u8>,
    begun: bool,
    ended: bool,
}

impl Parser {
    fn take(&mut self, chunk: &[u8], row: &mut impl FnMut(&mut Fields<'_>) -> Result<()>) -> Result<()> {
        self.rest.extend_from_slice(chunk);
        let mut rest = self.rest.as_slice();
        if !self.begun {
            // then flags, which concern us not, and what future versions may add
            let Some((header, after)) = rest.split_at_checked(SIGNATURE.len() + 8) else { return Ok(()) };
            ensure!(header.starts_with(SIGNATURE), "the server does not speak COPY's binary format");
            let extension = u32::from_be_bytes(header[SIGNATURE.len() + 4..].try_into()?);
            let Some(after) = after.get(extension as usize..) else { return Ok(()) };
            (rest, self.begun) = (after, true);
        }
        while !self.ended {
            let Some((&count, fields)) = rest.split_first_chunk() else { break };
            let count = i16::from_be_bytes(count);
            if count < 0 {
                self.ended = true;
                break;
            }
            let Some(length) = length(fields, count) else { break };
            row(&mut Fields(&fields[..length]))?;
            rest = &fields[length..];
        }
        let parsed = self.rest.len() - rest.len();
        self.rest.drain(..parsed);
        Ok(())
    }
}

/// The bytes of so many fields; none while some are missing.
fn length(fields: &[u8], count: i16) -> Option<usize> {
    let mut at = 0;
    for _ in 0..count {
        let length = i32::from_be_bytes(*fields.get(at..)?.first_chunk()?);
        at += 4 + usize::try_from(length).unwrap_or(0);
    }
    (at <= fields.len()).then_some(at)
}

/// The fields of a row that were not taken yet.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next one; none for NULL.
    fn next(&mut self) -> Result<Option<&'a [u8]>> {
        let (length, rest) = self.0.split_first_chunk().context("a row has fewer columns than expected")?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (field, rest) = rest.split_at_checked(length.unwrap_or(0)).context("a row is cut off")?;
        self.0 = rest;
        Ok(length.map(|_| field))
    }

    fn fixed<const N: usize>(&mut self) -> Result<Option<[u8; N]>> {
        self.next()?.map(|field| field.try_into().context("a column has another type than expected")).transpose()
    }

    pub(super) fn int_or_null(&mut self) -> Result<Option<i32>> {
        Ok(self.fixed()?.map(i32::from_be_bytes))
    }

    pub(super) fn bigint_or_null(&mut self) -> Result<Option<i64>> {
        Ok(self.fixed()?.map(i64::from_be_bytes))
    }

    /// In microseconds since 1970.
    pub(super) fn timestamp_or_null(&mut self) -> Result<Option<i64>> {
        Ok(self.bigint_or_null()?.map(|micros| micros.saturating_add(EPOCH_2000)))
    }

    pub(super) fn bigint(&mut self) -> Result<i64> {
        self.bigint_or_null()?.context("a column is NULL")
    }

    pub(super) fn timestamp(&mut self) -> Result<i64> {
        self.timestamp_or_null()?.context("a column is NULL")
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid> {
        Ok(Uuid::from_bytes(self.fixed()?.context("a column is NULL")?))
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        Ok(std::str::from_utf8(self.next()?.context("a column is NULL")?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_put_together_from_chunks_of_any_size() {
        let mut copy = [SIGNATURE, &[0; 4], &[0, 0, 0, 2], b"??"].concat();
        for number in 0..3_i64 {
            copy.extend([0, 3, 0, 0, 0, 8]);
            copy.extend(number.to_be_bytes());
            copy.extend([0xff; 4]);
            copy.extend([0, 0, 0, 2, b'h', b'i']);
        }
        copy.extend([0xff, 0xff]);
        for size in 1..copy.len() {
            let (mut parser, mut found) = (Parser::default(), Vec::new());
            for chunk in copy.chunks(size) {
                let mut row = |fields: &mut Fields<'_>| {
                    found.push((fields.bigint()?, fields.int_or_null()?, fields.text()?.to_owned()));
                    Ok(())
                };
                parser.take(chunk, &mut row).expect("parsed");
            }
            assert!(parser.ended, "chunks of {size}");
            assert_eq!(found, [0, 1, 2].map(|number| (number, None, "hi".to_owned())), "chunks of {size}");
        }
    }
}
