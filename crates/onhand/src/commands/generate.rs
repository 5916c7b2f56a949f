//! `onhand generate`: a file of rows to try, test or measure with.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use events::generate::{Generator, Shape};

/// Bytes per write.
const BLOCK: usize = 256 * 1024;

/// Write a CSV file of stock events, the same for the same seed
#[derive(Args)]
#[command(after_help = "\
Incoming goods, and sales that fit the stock at each row; among them, in the given shares, sales \
before their stock, rows sent twice, and malformed rows. A file that exists is not overwritten without --force.

Example: a million rows, dropped where a running `onhand up` takes them
  onhand generate --rows 1000000 -o million.csv && mv million.csv importer/input/")]
pub(crate) struct Arguments {
    /// Number of rows, without the header
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Number of stores
    #[arg(long, default_value_t = Shape::default().stores)]
    stores: u64,
    /// Number of items in each store
    #[arg(long, default_value_t = Shape::default().items)]
    items: u64,
    /// Share of sales among the plain rows; the others are incoming
    #[arg(long, value_name = "SHARE", default_value_t = Shape::default().sales)]
    sales: f64,
    /// Share of sales that exceed the stock, which comes some thousand rows later
    #[arg(long, value_name = "SHARE", default_value_t = Shape::default().early)]
    early: f64,
    /// Share of sales whose stock never comes: they are refused
    #[arg(long, value_name = "SHARE", default_value_t = Shape::default().hopeless)]
    hopeless: f64,
    /// Share of rows that repeat an earlier one word for word
    #[arg(long, value_name = "SHARE", default_value_t = Shape::default().duplicates)]
    duplicates: f64,
    /// Share of rows with an earlier one's transaction_id and another value
    #[arg(long, value_name = "SHARE", default_value_t = Shape::default().conflicts)]
    conflicts: f64,
    /// Share of rows that the importer refuses
    #[arg(long, value_name = "SHARE", default_value_t = Shape::default().bad)]
    bad: f64,
    /// Different seeds give different rows
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, requires = "output")]
    force: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let Arguments { rows, stores, items, sales, early, hopeless, duplicates, conflicts, bad, seed, output, force } =
        arguments;
    let shape = Shape { stores, items, sales, early, hopeless, duplicates, conflicts, bad };
    let generator = Generator::new(seed, shape)?;
    match output {
        None => write(generator, rows, io::stdout().lock()).context("writing to stdout")?,
        Some(path) => {
            let file = create(&path, force)?;
            write(generator, rows, file).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A device or a pipe is written to; a file is replaced only with `force`.
fn create(path: &Path, force: bool) -> Result<File> {
    let replace = force || fs::metadata(path).is_ok_and(|there| !there.is_file());
    let mut options = File::options();
    options.write(true);
    if replace {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} exists; --force replaces it", path.display())
        }
        opened => opened.with_context(|| format!("writing {}", path.display())),
    }
}

fn write(mut generator: Generator, rows: u64, mut to: impl Write) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK + 1024);
    block.extend_from_slice(Generator::header_line().as_bytes());
    for _ in 0..rows {
        generator.write_row(&mut block);
        if block.len() >= BLOCK {
            to.write_all(&block)?;
            block.clear();
        }
    }
    to.write_all(&block)?;
    to.flush()
}
