//! The input: a table of flights, read row by row from any place, and the sums that are made of it.
//!
//! The columns that are used are looked up by name and checked in every row, so that a file of another kind is refused
//! with the line and the column where it differs. Fields are taken as the CSV reader gives them; what a flight is called
//! in the results is the number of its line, which no other flight has.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::files;
use crate::cli::error::CliError;
use crate::cli::exit;

/// The airports, one for each branch.
pub(super) const ORIGINS: [&str; 3] = ["EWR", "JFK", "LGA"];

/// The columns that the demonstration uses, in the order of the fields of [`Columns`].
const COLUMNS: [&str; 6] = ["year", "month", "day", "arr_delay", "carrier", "origin"];

/// One row of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    /// Its line in the file: what tells it from all others.
    pub(super) line: u64,
    /// As `2013-01-07`.
    pub(super) day: String,
    pub(super) carrier: String,
    /// One of [`ORIGINS`].
    pub(super) origin: String,
    /// In minutes; `None` for a flight that never arrived, or whose arrival nobody wrote down.
    pub(super) arrival_delay: Option<i32>,
}

/// Where a row starts. As text, it is the position that is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    line: u64,
}

/// Flights and delays of one carrier on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) flights: u64,
    pub(super) delay_minutes: i64,
    /// Those that do not say how late they arrived.
    pub(super) without_delay: u64,
}

/// What a worker saves as its state: the sums so far, by day and carrier.
///
/// The order of the map makes equal sums equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Totals(BTreeMap<String, Sum>);

impl Totals {
    pub(super) fn add(&mut self, day: &str, carrier: &str, arrival_delay: Option<i32>) {
        let sum = self.0.entry(format!("{day} {carrier}")).or_default();
        sum.flights += 1;
        match arrival_delay {
            Some(minutes) => sum.delay_minutes += i64::from(minutes),
            None => sum.without_delay += 1,
        }
    }

    /// How many sums there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn flights(&self) -> u64 {
        self.0.values().map(|sum| sum.flights).sum()
    }

    /// Each day and carrier for which the two do not have the same sum, in order.
    pub(super) fn differences<'t>(
        &'t self,
        other: &'t Totals,
    ) -> impl Iterator<Item = (&'t str, Option<Sum>, Option<Sum>)> {
        let only_there = other.0.keys().filter(|key| !self.0.contains_key(*key));
        let keys = self.0.keys().chain(only_there);
        keys.map(|key| (key.as_str(), self.0.get(key).copied(), other.0.get(key).copied()))
            .filter(|(_, here, there)| here != there)
    }
}

/// What one pass over the whole file finds, without a stop: the answer that the workers have to arrive at.
pub(super) struct Expected {
    /// In the order of [`ORIGINS`].
    pub(super) totals: [Totals; 3],
}

impl Expected {
    pub(super) fn read(file: &Path) -> Result<Expected, CliError> {
        let mut totals: [Totals; 3] = Default::default();
        let mut flights = Flights::open(file, None)?;
        while let Some(flight) = flights.next()? {
            let origin = ORIGINS.iter().position(|origin| *origin == flight.origin);
            let origin = origin.expect("a flight that was read starts at one of the origins");
            totals[origin].add(&flight.day, &flight.carrier, flight.arrival_delay);
        }
        Ok(Expected { totals })
    }

    pub(super) fn flights(&self) -> u64 {
        self.totals.iter().map(Totals::flights).sum()
    }

    /// How many rows there are to compare.
    pub(super) fn sums(&self) -> usize {
        self.totals.iter().map(Totals::len).sum()
    }
}

/// A file of flights that is being read.
pub(super) struct Flights {
    file: PathBuf,
    rows: csv::Reader<File>,
    record: csv::StringRecord,
    columns: Columns,
}

/// Where the columns of [`COLUMNS`] are.
struct Columns([usize; COLUMNS.len()]);

impl Flights {
    /// Starts at `from`, or at the first row.
    pub(super) fn open(file: &Path, from: Option<Place>) -> Result<Flights, CliError> {
        let mut rows = csv::Reader::from_reader(files::open_regular(file)?);
        let header = rows.headers().map_err(|cause| unreadable(file, &cause))?;
        let columns = Columns::find(file, header)?;
        if let Some(Place { offset, line }) = from {
            let mut place = csv::Position::new();
            place.set_byte(offset).set_line(line);
            rows.seek(place).map_err(|cause| unreadable(file, &cause))?;
        }
        Ok(Flights { file: file.to_owned(), rows, record: csv::StringRecord::new(), columns })
    }

    /// The next row, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Flight>, CliError> {
        if !self.rows.read_record(&mut self.record).map_err(|cause| unreadable(&self.file, &cause))? {
            return Ok(None);
        }
        let year: u16 = self.number(0, "a year", |year| (1900..2200).contains(year))?;
        let month: u8 = self.number(1, "a month, 1 to 12", |month| (1..=12).contains(month))?;
        let day: u8 = self.number(2, "a day, 1 to 31", |day| (1..=31).contains(day))?;
        let arrival_delay = match self.field(3) {
            "NA" | "" => None,
            _ => Some(self.number(3, "whole minutes, or NA", |_| true)?),
        };
        let carrier = self.field(4);
        if carrier.is_empty() || !carrier.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(self.wrong(4, "letters and digits, such as UA"));
        }
        if !ORIGINS.contains(&self.field(5)) {
            return Err(self.wrong(5, "EWR, JFK or LGA"));
        }
        Ok(Some(Flight {
            line: self.line(),
            day: format!("{year:04}-{month:02}-{day:02}"),
            carrier: carrier.to_owned(),
            origin: self.field(5).to_owned(),
            arrival_delay,
        }))
    }

    /// Where the next row starts.
    pub(super) fn place(&self) -> Place {
        let place = self.rows.position();
        Place { offset: place.byte(), line: place.line() }
    }

    fn number<T: FromStr>(&self, column: usize, expected: &str, allowed: fn(&T) -> bool) -> Result<T, CliError> {
        self.field(column).parse().ok().filter(allowed).ok_or_else(|| self.wrong(column, expected))
    }

    /// The text of one of [`COLUMNS`].
    fn field(&self, column: usize) -> &str {
        // A row of another length than the header is refused by the CSV reader.
        self.record.get(self.columns.0[column]).unwrap_or_default()
    }

    fn line(&self) -> u64 {
        self.record.position().map_or(0, csv::Position::line)
    }

    fn wrong(&self, column: usize, expected: &str) -> CliError {
        let (line, name, field) = (self.line(), COLUMNS[column], self.field(column));
        refuse(&self.file, &format!("line {line}, column '{name}': found '{field}', expected {expected}"))
    }
}

impl Columns {
    fn find(file: &Path, header: &csv::StringRecord) -> Result<Columns, CliError> {
        let mut found = [0; COLUMNS.len()];
        for (place, name) in found.iter_mut().zip(COLUMNS) {
            *place = header.iter().position(|column| column == name).ok_or_else(|| {
                let all = COLUMNS.join(", ");
                refuse(file, &format!("line 1: no column '{name}'; expected a header with at least {all}"))
            })?;
        }
        Ok(Columns(found))
    }
}

fn unreadable(file: &Path, cause: &csv::Error) -> CliError {
    let line = |place: &Option<csv::Position>| place.as_ref().map_or(0, csv::Position::line);
    match cause.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            refuse(file, &format!("line {}: found {len} columns, expected {expected_len} as in the header", line(pos)))
        }
        csv::ErrorKind::Utf8 { pos, .. } => {
            refuse(file, &format!("line {}: found bytes that are not UTF-8, expected text", line(pos)))
        }
        _ => refuse(file, &cause.to_string()),
    }
}

fn refuse(file: &Path, problem: &str) -> CliError {
    CliError::new(exit::INTEGRITY, format!("{}: {problem}", file.display()))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset={} line={}", self.offset, self.line)
    }
}

impl FromStr for Place {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Place, CliError> {
        let parse = || {
            let (offset, line) = text.strip_prefix("offset=")?.split_once(" line=")?;
            Some(Place { offset: offset.parse().ok()?, line: line.parse().ok()? })
        };
        parse().ok_or_else(|| {
            let problem = format!("the committed position is '{text}', expected the form 'offset=93 line=2'");
            CliError::new(exit::INTEGRITY, problem)
        })
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sum { flights, delay_minutes, without_delay } = self;
        write!(f, "{flights} flights, {delay_minutes} minutes late, {without_delay} without a delay")
    }
}
