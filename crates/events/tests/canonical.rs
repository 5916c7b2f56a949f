//! The fast reader of records reads what it reads as the slow one does, and only what is written
//! back byte for byte.

use events::{
    Timestamp,
    stock::{Card, Movement, StockEvent},
};
use proptest::prelude::*;
use uuid::Uuid;

fn event() -> impl Strategy<Value = StockEvent> {
    let number = || prop_oneof![0..20_i64, 0..=i64::MAX];
    (any::<u128>(), any::<bool>(), -62_135_596_800..=Timestamp::LAST.0 / 1_000_000, number(), number(), 1..=i32::MAX)
        .prop_map(|(id, incoming, second, store, item, value)| StockEvent {
            transaction_id: Uuid::from_u128(id),
            movement: if incoming { Movement::Incoming } else { Movement::Sale },
            date: Timestamp(second * 1_000_000),
            card: Card { store, item },
            value,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_written_is_read_by_both(event in event()) {
        let json = event.to_json();
        prop_assert_eq!(StockEvent::decode_canonical(json.as_bytes()), Some(event));
        prop_assert_eq!(StockEvent::decode(json.as_bytes()), Ok(event));
    }

    #[test]
    fn what_the_fast_one_reads_is_written_back_byte_for_byte(
        event in event(),
        at in 0..200_usize,
        byte in prop_oneof![Just(b'0'), Just(b'9'), Just(b'A'), Just(b't'), Just(b'+'), Just(b'"'), Just(b' '), any::<u8>()],
        insert in any::<bool>(),
    ) {
        let mut json = event.to_json().into_bytes();
        let at = at % json.len();
        if insert { json.insert(at, byte) } else { json[at] = byte }
        if let Some(read) = StockEvent::decode_canonical(&json) {
            prop_assert_eq!(read.to_json().into_bytes(), json.clone());
            prop_assert_eq!(StockEvent::decode(&json), Ok(read));
        }
    }
}
