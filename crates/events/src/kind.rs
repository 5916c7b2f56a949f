//! What a column's values look like: checked byte by byte for the importer, and as JSON schema
//! for everyone else. `tests/schema.rs` holds the two together.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::timestamp::{NotATimestamp, Timestamp};

/// The values a column takes. All are printable ASCII without quotes or backslashes, so that an
/// accepted value goes into JSON as it is.
#[derive(Debug)]
pub enum Kind {
    /// `8947695b-7f19-44b6-96b6-7f8ed041fe57`, in either case.
    Uuid,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// RFC 3339 with an offset.
    DateTime,
    /// A whole number in decimal digits, both bounds included, not negative; leading zeros are
    /// fine (an article number may have them).
    Whole {
        /// The least value, 0 or more.
        min: i64,
        /// The greatest value.
        max: i64,
    },
}

impl Kind {
    /// Whether `value` (trimmed, not empty) is one of these; if not, why, to stand behind the
    /// column's name and the value: `is not a UUID (...)`.
    pub fn check(&self, value: &[u8]) -> Result<(), String> {
        match self {
            Kind::Uuid if is_uuid(value) => Ok(()),
            Kind::Uuid => Err("is not a UUID (like 8947695b-7f19-44b6-96b6-7f8ed041fe57)".into()),
            Kind::OneOf(words) if words.iter().any(|word| word.as_bytes() == value) => Ok(()),
            Kind::OneOf(words) => Err(format!("is not known (one of: {})", words.join(", "))),
            Kind::DateTime => match Timestamp::parse(value) {
                Ok(_) => Ok(()),
                Err(NotATimestamp::NoOffset) => {
                    Err("has no offset from UTC (like 2019-04-14T03:47:13Z or 2019-04-14T05:47:13+02:00)".into())
                }
                Err(NotATimestamp::AfterYear9999) => {
                    Err("is later than the year 9999 in UTC (the latest is 9999-12-31T23:59:59Z)".into())
                }
                Err(NotATimestamp::Malformed) => {
                    Err("is not a date and time with an offset (like 2019-04-14T03:47:13Z)".into())
                }
            },
            Kind::Whole { min, max } => match whole(value) {
                Some(number) if (*min..=*max).contains(&number) => Ok(()),
                _ => Err(format!("is not a whole number from {min} to {max}")),
            },
        }
    }

    /// The JSON schema of the values as strings.
    pub fn schema(&self) -> Value {
        match self {
            Kind::Uuid => {
                json!({"type": "string", "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"})
            }
            Kind::OneOf(words) => json!({"type": "string", "enum": words}),
            // `format` knows the days of each month; the pattern refuses the year 0 and leap seconds.
            // No pattern of a sensible size can add an offset to a time of day: the comment says it
            Kind::DateTime => json!({
                "type": "string",
                "format": "date-time",
                "$comment": "At most 9999-12-31T23:59:59.999999Z once its offset is taken into account.",
                "pattern": "^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-5][0-9](\\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$",
            }),
            Kind::Whole { min, max } => json!({"type": "string", "pattern": whole_pattern(*min, *max)}),
        }
    }
}

/// The number of a string of decimal digits; None where it is not one or exceeds 2^63-1.
pub fn whole(value: &[u8]) -> Option<i64> {
    if value.is_empty() {
        return None;
    }
    if value.len() <= 18 {
        // can't overflow
        return value.iter().try_fold(0, |number, byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit < 10).then_some(number * 10 + i64::from(digit))
        });
    }
    value.iter().try_fold(0_i64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn is_uuid(value: &[u8]) -> bool {
    let Ok(value) = <&[u8; 36]>::try_from(value) else { return false };
    // every byte is looked up, without a branch each: the hyphens' places count as digits
    let digits = value.iter().fold(0, |other, byte| other + u32::from(!IS_HEX_OR_HYPHEN[usize::from(*byte)]));
    let hyphens = value.iter().filter(|byte| **byte == b'-').count();
    digits == 0 && hyphens == 4 && [8, 13, 18, 23].iter().all(|at| value[*at] == b'-')
}

static IS_HEX_OR_HYPHEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_hexdigit() || byte == b'-' as usize;
        byte += 1;
    }
    table
};

/// A regular expression for the digits of 0..=max, or of 1..=max; leading zeros allowed.
fn whole_pattern(min: i64, max: i64) -> String {
    assert!(min == 0 || min == 1, "a pattern for numbers from {min} is not needed so far");
    let digits = max.to_string();
    let mut pattern = format!("^0*({digits}");
    if digits.len() > 1 {
        write!(pattern, "|[1-9][0-9]{{0,{}}}", digits.len() - 2).expect("a string takes all");
    }
    for (at, digit) in digits.char_indices() {
        let least = if at == 0 { '1' } else { '0' };
        if digit > least {
            let below = char::from(digit as u8 - 1);
            let rest = digits.len() - at - 1;
            write!(pattern, "|{}[{least}-{below}][0-9]{{{rest}}}", &digits[..at]).expect("a string takes all");
        }
    }
    pattern.push_str(if min == 0 { "|0)$" } else { ")$" });
    pattern
}
