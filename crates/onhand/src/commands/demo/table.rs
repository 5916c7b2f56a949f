//! Rows in columns: the example file, and the `items` table as psql prints it.

/// The rows of a plain CSV (no quotes) in columns, each with its line number.
pub(crate) fn of_csv(csv: &str) -> Vec<String> {
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').map(short).collect()).collect();
    let widths = widths(rows.iter().map(Vec::as_slice));
    rows.iter()
        .zip(1..)
        .map(|(row, number)| {
            let fields: Vec<_> = row.iter().zip(&widths).map(|(field, width)| format!("{field:width$}")).collect();
            format!("{number:>2}  {}", fields.join("  ")).trim_end().to_owned()
        })
        .collect()
}

/// A UUID's first part tells it from others, and leaves room.
fn short(field: &str) -> &str {
    match field.len() {
        36 if field.as_bytes()[8] == b'-' => &field[..8],
        _ => match field {
            "transaction_id" => "id",
            "event_type" => "type",
            "store_number" => "store",
            "item_number" => "item",
            other => other,
        },
    }
}

/// Numbers under their names, as psql prints them.
pub(crate) fn of_numbers(names: &[&str], rows: &[Vec<i64>]) -> Vec<String> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(i64::to_string).collect()).collect();
    let cells: Vec<Vec<&str>> = rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
    let widths = widths(std::iter::once(names).chain(cells.iter().map(Vec::as_slice)));
    let line = |cells: Vec<String>| format!(" {}", cells.join(" | ")).trim_end().to_owned();
    let mut lines = vec![
        line(names.iter().zip(&widths).map(|(name, width)| format!("{name:^width$}")).collect()),
        widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("+"),
    ];
    for row in &cells {
        lines.push(line(row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect()));
    }
    lines.push(format!("({} row{})", rows.len(), if rows.len() == 1 { "" } else { "s" }));
    lines
}

fn widths<'a>(rows: impl Iterator<Item = &'a [&'a str]>) -> Vec<usize> {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_like_psql() {
        let lines = of_numbers(&["id", "item_id", "amount"], &[vec![1, 3, 500], vec![12, 4_006_381_333_931, 7]]);
        let psql = [
            " id |    item_id    | amount",
            "----+---------------+--------",
            "  1 |             3 |    500",
            " 12 | 4006381333931 |      7",
            "(2 rows)",
        ];
        assert_eq!(lines, psql);
    }
}
