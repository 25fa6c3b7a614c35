//! A week of flights from New York's three airports: how they are read, delivered and counted, and what comes out if nothing
//! ever fails. `nightly_merge` and its tests count the same flights by this.

#![allow(dead_code, reason = "each user takes its part")]
#![allow(clippy::disallowed_methods, reason = "an example reads a file of its own")]

use std::collections::BTreeMap;
use std::path::Path;

use fencepost_client::{Checkpoint, DeadLetter, StoredCheckpoint, merge};
use serde::{Deserialize, Serialize};

use super::Result;

/// Where they start. Each is a branch.
pub(crate) const AIRPORTS: [&str; 3] = ["EWR", "JFK", "LGA"];

/// Columns of the file, with their places.
const COLUMNS: [(usize, &str); 7] =
    [(0, "year"), (1, "month"), (2, "day"), (3, "dep_time"), (8, "arr_delay"), (9, "carrier"), (12, "origin")];

/// A row of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flight {
    /// Its line in the file; the header is line 1.
    pub(crate) line: usize,
    /// The row as it is.
    pub(crate) text: String,
    /// `2013-01-05`.
    pub(crate) day: String,
    pub(crate) airport: String,
    pub(crate) carrier: String,
    pub(crate) has_departed: bool,
    /// Minutes, negative if it was early. `None` if the row lacks it: then it cannot be counted.
    pub(crate) delay: Option<i64>,
}

/// What an airport reports of a carrier on a day.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) day: String,
    pub(crate) airport: String,
    pub(crate) carrier: String,
    /// Flights with a known delay, and the sum of their delays in minutes.
    pub(crate) flights: u64,
    pub(crate) minutes: i64,
}

/// Rows that are held up on their way: the last `rows` of `airport` on `day`, which come with the next but one day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldUp<'a> {
    pub(crate) airport: &'a str,
    pub(crate) day: &'a str,
    pub(crate) rows: usize,
}

/// The rows of an airport in the order in which they come.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// All rows that come in time, day by day.
    pub(crate) rows: Vec<Flight>,
    /// Those that come too late, and the day with which they come.
    pub(crate) late: Vec<Flight>,
    pub(crate) late_with: Option<String>,
}

/// Some rows that are counted in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) day: &'a str,
    pub(crate) rows: &'a [Flight],
    /// Whether no row of the day comes after them.
    pub(crate) ends_the_day: bool,
}

/// Reads the file.
pub(crate) fn read() -> Result<Vec<Flight>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/flights-week1.csv");
    let text = std::fs::read_to_string(path)?;
    let mut lines = text.lines().zip(1..);
    let header: Vec<&str> = lines.next().map(|(header, _)| header.split(',').collect()).unwrap_or_default();
    for (place, name) in COLUMNS {
        if header.get(place) != Some(&name) {
            return Err(format!("line 1: found {header:?}, expected '{name}' as column {}", place + 1).into());
        }
    }
    lines.map(|(row, line)| parse(row, line)).collect()
}

fn parse(row: &str, line: usize) -> Result<Flight> {
    let fields: Vec<&str> = row.split(',').collect();
    let [year, month, day, departed, .., delay, carrier, _, _, airport] = fields[..13.min(fields.len())] else {
        return Err(format!("line {line}: found {} columns, expected at least 13", fields.len()).into());
    };
    let delay = match delay {
        "NA" => None,
        minutes => {
            Some(minutes.parse().map_err(|_| format!("line {line}: arr_delay is '{minutes}', expected minutes"))?)
        }
    };
    Ok(Flight {
        line,
        text: row.to_owned(),
        day: format!("{year}-{month:0>2}-{day:0>2}"),
        airport: airport.to_owned(),
        carrier: carrier.to_owned(),
        has_departed: departed != "NA",
        delay,
    })
}

/// The days of these flights, in order.
pub(crate) fn days(flights: &[Flight]) -> Vec<String> {
    let mut days: Vec<String> = flights.iter().map(|flight| flight.day.clone()).collect();
    days.sort();
    days.dedup();
    days
}

/// Of which day of its month this is the date.
pub(crate) fn number(day: &str) -> u64 {
    day.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

impl Feed {
    /// What comes from an airport. Rows of the last two days are not to be held up: no day is left to bring them.
    pub(crate) fn of(flights: &[Flight], airport: &str, held_up: HeldUp<'_>) -> Feed {
        let mut rows: Vec<Flight> = flights.iter().filter(|flight| flight.airport == airport).cloned().collect();
        if airport != held_up.airport {
            return Feed { rows, ..Feed::default() };
        }
        let end = rows.iter().rposition(|flight| flight.day == held_up.day).map_or(0, |last| last + 1);
        let late = rows.splice(end.saturating_sub(held_up.rows)..end, []).collect();
        let late_with = days(&rows).into_iter().filter(|day| **day > *held_up.day).nth(1);
        Feed { rows, late, late_with }
    }

    /// At most `most` rows that come after the first `done`, all of one day. `None` after the last.
    pub(crate) fn batch(&self, done: usize, most: usize) -> Option<Batch<'_>> {
        let rest = self.rows.get(done..)?;
        let day = &*rest.first()?.day;
        let left = rest.iter().take_while(|flight| flight.day == day).count();
        Some(Batch { day, rows: &rest[..left.min(most)], ends_the_day: left <= most })
    }

    /// The rows that are late, if they come with this day.
    pub(crate) fn late_on(&self, day: &str) -> &[Flight] {
        if self.late_with.as_deref() == Some(day) { &self.late } else { &[] }
    }
}

impl Report {
    /// What tells it from all others.
    pub(crate) fn key(&self) -> (String, String, String) {
        (self.day.clone(), self.airport.clone(), self.carrier.clone())
    }
}

/// Counts these rows into the reports. Those without a delay are left out.
pub(crate) fn count(reports: &mut Vec<Report>, rows: &[Flight]) {
    for flight in rows {
        let Some(delay) = flight.delay else { continue };
        let Flight { day, airport, carrier, .. } = flight.clone();
        let is_same = |it: &&mut Report| (&it.day, &it.airport, &it.carrier) == (&day, &airport, &carrier);
        if let Some(report) = reports.iter_mut().find(is_same) {
            report.flights += 1;
            report.minutes += delay;
        } else {
            reports.push(Report { day, airport, carrier, flights: 1, minutes: delay });
        }
    }
}

/// A checkpoint behind these rows: how many there were and became what, and the dead letters among them.
pub(crate) fn checkpoint(position: impl ToString, reports: &[Report], rows: &[Flight]) -> Result<Checkpoint> {
    let dead: Vec<DeadLetter> = rows.iter().filter_map(dead_letter).collect();
    let checkpoint = Checkpoint::at(position.to_string()).state(serde_json::to_vec(reports)?);
    let counted = checkpoint.rows_in(rows.len() as u64).rows_out((rows.len() - dead.len()) as u64);
    Ok(counted.dead_letters(dead))
}

/// The reports that a checkpoint has.
pub(crate) fn reports(checkpoint: &StoredCheckpoint) -> Result<Vec<Report>> {
    Ok(serde_json::from_slice(checkpoint.state())?)
}

fn dead_letter(flight: &Flight) -> Option<DeadLetter> {
    let reason = match flight {
        Flight { delay: Some(_), .. } => return None,
        Flight { has_departed: true, .. } => "departed, but has no arr_delay",
        _ => "never departed",
    };
    Some(DeadLetter::new(flight.text.clone(), reason).position(format!("line {}", flight.line)))
}

/// All reports of these checkpoints. No two may have different reports of the same.
pub(crate) fn united(inputs: &[StoredCheckpoint]) -> Result<Vec<Report>> {
    let named = inputs.iter().map(|input| Ok((input.branch(), reports(input)?))).collect::<Result<Vec<_>>>()?;
    Ok(merge::union_by_key(named, Report::key)?)
}

/// The merged reports, where a late one replaces one that has counted fewer flights.
pub(crate) fn amended(merged: &StoredCheckpoint, late: &StoredCheckpoint) -> Result<Vec<Report>> {
    let inputs = [("merged", reports(merged)?), ("late", reports(late)?)];
    Ok(merge::latest_by_event_time(&["merged", "late"], inputs, Report::key, |report| report.flights)?)
}

/// What two merges compare.
pub(crate) fn digest(reports: &[Report]) -> [u8; 32] {
    merge::digest(reports.iter().map(|report| serde_json::to_vec(report).expect("a report is plain data")))
}

/// What all workers together have to come to: one pass over the file, without a stop.
pub(crate) fn straight(flights: &[Flight]) -> Vec<Report> {
    let mut sums: BTreeMap<(&str, &str, &str), (u64, i64)> = BTreeMap::new();
    for flight in flights {
        if let Some(delay) = flight.delay {
            let (flights, minutes) = sums.entry((&flight.day, &flight.airport, &flight.carrier)).or_default();
            (*flights, *minutes) = (*flights + 1, *minutes + delay);
        }
    }
    let reports = sums.into_iter().map(|((day, airport, carrier), (flights, minutes))| Report {
        day: day.to_owned(),
        airport: airport.to_owned(),
        carrier: carrier.to_owned(),
        flights,
        minutes,
    });
    reports.collect()
}
