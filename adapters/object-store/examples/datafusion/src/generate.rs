//! Makes the tables: orders of customers, and the items of orders. The same numbers each time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;

use crate::Outcome;

/// The tables, each a directory of files.
pub(crate) const TABLES: [&str; 3] = ["items", "orders", "customers"];

/// Rows of one batch and of one row group.
const BATCH: usize = 100_000;
const ROW_GROUP: usize = 250_000;

const ITEMS_OF_ORDER: usize = 4;
const ORDERS_OF_CUSTOMER: usize = 20;

const WORDS: [&str; 12] = [
    "express", "fragile", "wrapped", "returned", "insured", "frozen", "bulky", "signed", "stored",
    "checked", "urgent", "plain",
];

/// Makes the tables, with `rows` items, unless they are there. On return they are on the disk.
pub(crate) fn generate(data: &Path, rows: usize) -> Outcome<()> {
    if data.exists() {
        return Ok(());
    }
    println!("making {rows} rows in {}", data.display());
    let being_made = data.with_extension("being-made");
    if being_made.exists() {
        std::fs::remove_dir_all(&being_made)?;
    }
    let orders = rows / ITEMS_OF_ORDER;
    let customers = (orders / ORDERS_OF_CUSTOMER).max(1);
    write(&being_made.join("items"), rows, 8, items)?;
    let order = |at, random: &mut fastrand::Rng| self::orders(at, customers, random);
    write(&being_made.join("orders"), orders, 4, order)?;
    write(&being_made.join("customers"), customers, 1, |at, random| {
        let regions = texts(at.clone(), |_| WORDS[random.usize(..5)].to_owned());
        vec![("customer_id", numbers(at, |at| at)), ("region", regions)]
    })?;
    std::fs::rename(being_made, data)?;
    Ok(())
}

/// Returns all files of the tables, with their lengths.
pub(crate) fn files(data: &Path) -> Outcome<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for table in TABLES {
        for entry in std::fs::read_dir(data.join(table))? {
            let entry = entry?;
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(files)
}

type Columns = Vec<(&'static str, ArrayRef)>;
type Rows = std::ops::Range<usize>;

/// Writes `rows` rows into `files` files, batch by batch.
fn write(
    directory: &Path,
    rows: usize,
    files: usize,
    mut batch: impl FnMut(Rows, &mut fastrand::Rng) -> Columns,
) -> Outcome<()> {
    std::fs::create_dir_all(directory)?;
    let mut random = fastrand::Rng::with_seed(41);
    for number in 0..files {
        let (mut at, end) = (rows * number / files, rows * (number + 1) / files);
        let first = RecordBatch::try_from_iter(batch(at..end.min(at + 1), &mut random))?;
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(ROW_GROUP))
            .build();
        let file = File::create(directory.join(format!("part-{number}.parquet")))?;
        let written = file.try_clone()?;
        let mut writer = ArrowWriter::try_new(file, first.schema(), Some(properties))?;
        while at < end {
            let next = end.min(at + BATCH);
            writer.write(&RecordBatch::try_from_iter(batch(at..next, &mut random))?)?;
            at = next;
        }
        writer.close()?;
        written.sync_all()?;
    }
    Ok(())
}

fn items(at: Rows, random: &mut fastrand::Rng) -> Columns {
    let order = numbers(at.clone(), |at| at / ITEMS_OF_ORDER);
    let line = numbers(at.clone(), |at| at % ITEMS_OF_ORDER);
    let part = numbers(at.clone(), |_| random.usize(..200_000));
    let quantity = numbers(at.clone(), |_| random.usize(1..=50));
    let price = numbers(at.clone(), |_| random.usize(100..100_000));
    let shipped = numbers(at.clone(), |_| random.usize(..2500));
    let status = texts(at.clone(), |_| {
        ["A", "N", "R"][random.usize(..3)].to_owned()
    });
    let comment = texts(at, |at| {
        let mut word = || WORDS[random.usize(..WORDS.len())];
        format!("{} {} {} {at:x}", word(), word(), word())
    });
    vec![
        ("order_id", order),
        ("line", line),
        ("part", part),
        ("quantity", quantity),
        ("price", price),
        ("shipped", shipped),
        ("status", status),
        ("comment", comment),
    ]
}

fn orders(at: Rows, customers: usize, random: &mut fastrand::Rng) -> Columns {
    let customer = numbers(at.clone(), |_| random.usize(..customers));
    let placed = numbers(at.clone(), |_| random.usize(..2500));
    let priority = numbers(at.clone(), |_| random.usize(1..=5));
    vec![
        ("order_id", numbers(at, |at| at)),
        ("customer_id", customer),
        ("placed", placed),
        ("priority", priority),
    ]
}

fn numbers(at: Rows, mut number: impl FnMut(usize) -> usize) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(at.map(|at| number(at) as i64)))
}

fn texts(at: Rows, text: impl FnMut(usize) -> String) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(at.map(text)))
}
