//! Events as lines of CSV, written without `format!` and without an allocation.

use time::OffsetDateTime;

use super::Event;

/// What is wrong with a bad row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Uuid,
    EventType,
    NoOffset,
    Negative,
    Zero,
    NoNumber,
    MissingField,
    UnclosedQuote,
}

pub(super) const FAULTS: [Fault; 8] = [
    Fault::Uuid,
    Fault::EventType,
    Fault::NoOffset,
    Fault::Negative,
    Fault::Zero,
    Fault::NoNumber,
    Fault::MissingField,
    Fault::UnclosedQuote,
];

const DAY: i64 = 86_400;

/// Writes lines; remembers the day it wrote last.
#[derive(Debug, Default)]
pub(super) struct Text {
    day: i64,
    /// `2026-01-01T`
    day_text: String,
}

impl Text {
    pub(super) fn write(&mut self, event: &Event, out: &mut Vec<u8>) {
        self.write_with(event, None, out);
    }

    pub(super) fn write_bad(&mut self, event: &Event, fault: Fault, out: &mut Vec<u8>) {
        self.write_with(event, Some(fault), out);
    }

    #[inline]
    fn write_with(&mut self, event: &Event, fault: Option<Fault>, out: &mut Vec<u8>) {
        match fault {
            Some(Fault::Uuid) => out.extend_from_slice(b"not-a-uuid"),
            _ => uuid(event.id, out),
        }
        out.push(b',');
        match fault {
            Some(Fault::EventType) => out.extend_from_slice(b"returned"),
            _ => out.extend_from_slice(event.movement.as_str().as_bytes()),
        }
        out.push(b',');
        self.date(event.second, out);
        if !matches!(fault, Some(Fault::NoOffset)) {
            out.push(b'Z');
        }
        out.push(b',');
        integer(event.store, out);
        out.push(b',');
        if !matches!(fault, Some(Fault::MissingField)) {
            integer(event.item, out);
            out.push(b',');
        }
        match fault {
            Some(Fault::Negative) => out.push(b'-'),
            Some(Fault::UnclosedQuote) => out.push(b'"'),
            _ => {}
        }
        match fault {
            Some(Fault::Zero) => out.push(b'0'),
            Some(Fault::NoNumber) => out.extend_from_slice(b"many"),
            _ => integer(event.value.unsigned_abs(), out),
        }
        out.push(b'\n');
    }

    /// `2026-01-01T00:00:00`
    fn date(&mut self, second: i64, out: &mut Vec<u8>) {
        let (day, rest) = (second.div_euclid(DAY), second.rem_euclid(DAY) as u64);
        if day != self.day || self.day_text.is_empty() {
            let date = OffsetDateTime::from_unix_timestamp(day * DAY).unwrap_or(OffsetDateTime::UNIX_EPOCH).date();
            self.day_text = format!("{:04}-{:02}-{:02}T", date.year(), u8::from(date.month()), date.day());
            self.day = day;
        }
        out.extend_from_slice(self.day_text.as_bytes());
        two_digits(rest / 3600, out);
        out.push(b':');
        two_digits(rest / 60 % 60, out);
        out.push(b':');
        two_digits(rest % 60, out);
    }
}

fn uuid(id: u128, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in id.to_be_bytes().into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    out.extend_from_slice(&text);
}

fn integer(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn two_digits(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]);
}
