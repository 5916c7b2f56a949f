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
    /// A whole number in decimal digits, both bounds included; leading zeros are fine (an article
    /// number may have them).
    Integer {
        /// The least value; 1 or less.
        min: i64,
        /// The greatest value; 1 or more.
        max: i64,
    },
}

impl Kind {
    /// Whether `value` (trimmed, not empty) is one of these; if not, why, to follow the
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
            Kind::Integer { min, max } => match integer(value) {
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
            // No pattern of a sensible size can add an offset to a time of day: `$comment` says it.
            Kind::DateTime => json!({
                "type": "string",
                "format": "date-time",
                "$comment": "At most 9999-12-31T23:59:59.999999Z once its offset is taken into account.",
                "pattern": "^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-5][0-9](\\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$",
            }),
            Kind::Integer { min, max } => json!({"type": "string", "pattern": integer_pattern(*min, *max)}),
        }
    }
}

/// The number of a string of decimal digits, with `-` before them if it is less than 0; none where it
/// is not one, or is beyond 2^63-1 in either direction.
pub fn integer(value: &[u8]) -> Option<i64> {
    match value.strip_prefix(b"-") {
        None => digits(value),
        // minus nothing is a slip of the keyboard
        Some(value) => digits(value).filter(|number| *number != 0).map(|number| -number),
    }
}

fn digits(value: &[u8]) -> Option<i64> {
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
    // every byte is looked up, without a branch each: the positions of hyphens count as digits
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

/// A regular expression for the numbers from `min` (1 or less) to `max`; leading zeros allowed.
fn integer_pattern(min: i64, max: i64) -> String {
    assert!(min <= 1 && max >= 1, "a pattern for numbers from {min} to {max} is not needed so far");
    let positive = pattern_up_to(max.unsigned_abs());
    match min {
        1 => format!("^0*({positive})$"),
        0 => format!("^0*({positive}|0)$"),
        _ => format!("^(-0*({})|0*({positive}|0))$", pattern_up_to(min.unsigned_abs())),
    }
}

/// A regular expression for the digits of 1..=max, without leading zeros.
fn pattern_up_to(max: u64) -> String {
    let digits = max.to_string();
    let mut pattern = digits.clone();
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
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_number_and_its_pattern_agree() {
        let kind = Kind::Integer { min: -1_200, max: 35 };
        let schema = jsonschema::validator_for(&kind.schema()).expect("a schema");
        for text in ["0", "35", "036", "36", "-1", "-1200", "-01200", "-1201", "-0", "+1", "-", "", "--1", "1-"] {
            let number = text.parse::<i64>().ok().filter(|number| (-1_200..=35).contains(number));
            let expected = number.is_some() && text != "-0" && text != "+1";
            assert_eq!(kind.check(text.as_bytes()).is_ok(), expected, "{text}");
            assert_eq!(schema.is_valid(&json!(text)), expected, "{text}");
        }
    }
}
