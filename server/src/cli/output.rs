//! Printing what was found: as a table for people or as JSON for programs.

use std::fmt::Display;
use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use fencepost::{Lsn, Token};
use serde_json::{Map, Value, json};

use super::duration;
use super::error::CliError;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one document, or one line for each fact of `log`.
    Json,
}

/// Where a command prints.
pub(crate) struct Output {
    format: Format,
}

/// One value: what a person reads and what a program reads.
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) value: Value,
    is_number: bool,
}

/// A column: its key in JSON, which in capitals is its title.
pub(super) type Column = &'static str;

/// The last column of lists: why a row cannot be read. People see it only where there is such a row.
pub(super) const UNREADABLE: Column = "unreadable";

impl Output {
    pub(super) fn new(format: Format) -> Output {
        Output { format }
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints rows under the given columns. `none` is what a person reads where there are no rows.
    pub(super) fn rows(&self, columns: &[Column], rows: Vec<Vec<Cell>>, none: &str) -> Result<(), CliError> {
        if self.is_json() {
            let rows: Vec<Value> = rows.into_iter().map(|row| object(columns, row)).collect();
            return write(&pretty(&Value::Array(rows)));
        }
        if rows.is_empty() {
            note(none);
            return Ok(());
        }
        let is_shown =
            |column: &Column, i: usize| *column != UNREADABLE || rows.iter().any(|row| !row[i].value.is_null());
        let shown = columns.iter().enumerate().take_while(|(i, column)| is_shown(column, *i)).count();
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(columns[..shown].iter().map(|column| title(column)));
        for (i, cell) in rows.first().into_iter().flatten().enumerate() {
            if let (true, Some(column)) = (cell.is_number, table.column_mut(i)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in rows {
            table.add_row(row.into_iter().take(shown).map(|cell| cell.text));
        }
        write(&table.trim_fmt())
    }

    /// Prints one thing: a line for each of its properties.
    pub(super) fn record(&self, properties: Vec<(Column, Cell)>) -> Result<(), CliError> {
        if self.is_json() {
            let object: Map<String, Value> =
                properties.into_iter().map(|(column, cell)| (column.to_owned(), cell.value)).collect();
            return write(&pretty(&Value::Object(object)));
        }
        let width = properties.iter().map(|(column, _)| label(column).len()).max().unwrap_or(0);
        let lines: Vec<String> = properties
            .into_iter()
            .map(|(column, cell)| format!("{:width$}  {}", label(column), cell.text).trim_end().to_owned())
            .collect();
        write(&lines.join("\n"))
    }
}

impl Cell {
    pub(super) fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell { value: json!(text), text, is_number: false }
    }

    pub(super) fn flag(flag: bool) -> Cell {
        Cell { text: if flag { "yes" } else { "no" }.to_owned(), value: json!(flag), is_number: false }
    }

    pub(super) fn count(count: u64) -> Cell {
        Cell { text: count.to_string(), value: json!(count), is_number: true }
    }

    /// Text that may be missing.
    pub(super) fn maybe(text: &str) -> Cell {
        if text.is_empty() { Cell::none(false) } else { Cell::text(text) }
    }

    /// A count that may be unknown.
    pub(super) fn optional(count: Option<u64>) -> Cell {
        count.map_or_else(|| Cell::none(true), Cell::count)
    }

    pub(super) fn bytes(bytes: u64) -> Cell {
        Cell { text: human_bytes(bytes), value: json!(bytes), is_number: true }
    }

    /// Milliseconds since 1970; 0: never.
    pub(super) fn time(at_ms: u64) -> Cell {
        if at_ms == 0 {
            return Cell::none(false);
        }
        Cell::text(time(at_ms))
    }

    pub(super) fn token(token: u64) -> Cell {
        if token == 0 {
            return Cell::none(false);
        }
        Cell::text(Token::from_u64(token).to_string())
    }

    pub(super) fn lsn(lsn: u64) -> Cell {
        if lsn == 0 {
            return Cell::none(false);
        }
        Cell::text(Lsn::from_u64(lsn).to_string())
    }

    /// A length of time, in milliseconds.
    pub(super) fn duration(ms: u64) -> Cell {
        Cell { text: human_duration(ms), value: json!(ms), is_number: true }
    }

    /// A length of time that somebody chose, in milliseconds: shown as it was chosen.
    pub(super) fn exact_duration(ms: u64) -> Cell {
        Cell { text: duration::exact(ms), value: json!(ms), is_number: true }
    }

    pub(super) fn none(is_number: bool) -> Cell {
        Cell { text: "-".to_owned(), value: Value::Null, is_number }
    }

    /// Bytes that are usually text: as text if they are, otherwise as hex.
    pub(super) fn opaque(bytes: &[u8]) -> Cell {
        Cell::text(readable(bytes))
    }

    /// With another value for programs than for people.
    pub(super) fn with_value(self, value: Value) -> Cell {
        Cell { value, ..self }
    }
}

/// Text as it is, but on one line; other bytes as hex.
pub(super) fn readable(bytes: &[u8]) -> String {
    let is_binary = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(is_binary) => text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t"),
        _ => format!("0x{}", hex(bytes)),
    }
}

/// Two digits for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// So many of something.
pub(super) fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// A time as RFC 3339, in UTC, to the millisecond.
pub(super) fn time(at_ms: u64) -> String {
    let timestamp = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| format!("{at_ms} ms"), |timestamp| format!("{timestamp:.3}"))
}

/// A length of time with the unit that fits it.
pub(super) fn human_duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// A size with the unit that fits it.
pub(super) fn human_bytes(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit < 4 {
        value /= 1024.0;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB"][unit];
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

fn title(column: &str) -> String {
    label(column).to_uppercase()
}

/// The key without its unit, which the text of the cell has already.
fn label(column: &str) -> String {
    column.trim_end_matches("_ms").trim_end_matches("_bytes").replace('_', " ")
}

fn object(columns: &[Column], row: Vec<Cell>) -> Value {
    let cells = columns.iter().zip(row).map(|(column, cell)| ((*column).to_owned(), cell.value));
    Value::Object(cells.collect())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// Prints data to standard output.
pub(super) fn write(text: &str) -> Result<(), CliError> {
    write_raw(format!("{text}\n").as_bytes())
}

/// Writes bytes to standard output as they are. A reader that went away has seen enough.
pub(super) fn write_raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|cause| CliError::io("writing to standard output", cause)),
    }
}

/// Tells the person something that is not data.
pub(super) fn note(message: impl Display) {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{message}");
}
