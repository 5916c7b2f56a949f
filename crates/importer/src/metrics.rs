//! The importer's metrics, counted by chunk and by file.

use metrics::{counter, gauge};

use crate::read::position::Position;

/// Counts a part of a file that is acknowledged.
pub(crate) fn acknowledged(from: &Position, to: &Position) {
    let rows = |result: &'static str, rows: u64| {
        if rows > 0 {
            counter!("onhand_importer_rows_total", "result" => result).increment(rows);
        }
    };
    rows("accepted", to.accepted.saturating_sub(from.accepted));
    rows("refused", to.refused.saturating_sub(from.refused));
    counter!("onhand_importer_bytes_total").increment(to.byte.saturating_sub(from.byte));
}

/// Counts a finished file: `done`, or `rejected` as a whole.
pub(crate) fn finished(result: &'static str) {
    counter!("onhand_importer_files_total", "result" => result).increment(1);
}

/// Records that Kafka has not acknowledged, and active files.
pub(crate) fn in_flight(records: u64, files: usize) {
    gauge!("onhand_importer_records_in_flight").set(records as f64);
    gauge!("onhand_importer_files_open").set(files as f64);
}
