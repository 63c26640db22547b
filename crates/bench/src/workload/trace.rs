//! Traces: lengths, and sometimes times, texts and prefix hashes, from a file.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use stallfree_core::Slo;

use crate::{Error, Result};

/// What a file says about requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The file's name, without its folder and ending.
    pub name: String,
    /// The requests, in the file's order.
    pub rows: Vec<TraceRow>,
}

/// A request of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceRow {
    /// When it came, in seconds from any start.
    pub at: Option<f64>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens of the output.
    pub output_len: usize,
    /// Hashes of the prompt's blocks of 512 tokens.
    pub blocks: Vec<u64>,
    /// The prompt's text.
    pub text: Option<String>,
    /// What the request is promised.
    pub slo: Slo,
}

impl TraceRow {
    /// Returns a request of these lengths.
    #[must_use]
    pub fn of(prompt_len: usize, output_len: usize) -> Self {
        Self { prompt_len, output_len, ..Self::default() }
    }
}

/// Counts a text's tokens.
pub type CountTokens<'a> = &'a dyn Fn(&str) -> usize;

impl Trace {
    /// Reads a file, whose ending and columns tell what it is:
    ///
    /// - `.csv` with `num_prefill_tokens,num_decode_tokens` (Sarathi-Serve, Splitwise), times in `arrived_at` (seconds), if any;
    /// - `.csv` with `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure);
    /// - `.jsonl` with `timestamp` (ms), `input_length`, `output_length`, `hash_ids` (Mooncake), and, if need be, `ttft_slo` and `tpot_slo`
    ///   (ms);
    /// - `.json`, a list of objects with `conversations` (ShareGPT), of which the first question and answer count. Only this one
    ///   needs `count_tokens`.
    ///
    /// # Errors
    /// The file can't be read or is none of these; the message names the line.
    pub fn read(path: &Path, count_tokens: CountTokens<'_>) -> Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let rows = match ending {
            "csv" => csv_rows(path),
            "jsonl" => mooncake_rows(path),
            "json" => sharegpt_rows(path, count_tokens),
            _ => Err(Error::content(path, "a trace ends in .csv, .jsonl or .json")),
        }?;
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into());
        Ok(Self { name, rows })
    }
}

fn csv_rows(path: &Path) -> Result<Vec<TraceRow>> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .map_err(|error| Error::content(path, &error))?;
    let header = reader.headers().map_err(|error| Error::content(path, &error))?.clone();
    let column = |names: &[&str]| header.iter().position(|name| names.contains(&name));
    let prompt = column(&["num_prefill_tokens", "ContextTokens"]);
    let output = column(&["num_decode_tokens", "GeneratedTokens"]);
    let (Some(prompt), Some(output)) = (prompt, output) else {
        return Err(Error::content(
            path,
            "expected the columns num_prefill_tokens,num_decode_tokens or ContextTokens,GeneratedTokens",
        ));
    };
    let at = column(&["arrived_at", "TIMESTAMP"]);
    let mut rows = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(|error| Error::content(path, &error))?;
        let bad = |column: usize| {
            let (name, text) = (&header[column], record.get(column).unwrap_or_default());
            Error::content(path, &format!("line {}: {name} is `{text}`", index + 2))
        };
        let count = |column: usize| {
            let text = record.get(column).unwrap_or_default();
            // pandas writes whole numbers with `.0` where a column once had a gap.
            text.trim_end_matches(".0").parse::<usize>().map_err(|_| bad(column))
        };
        let at =
            at.map(|column| seconds(&record[column]).ok_or_else(|| bad(column))).transpose()?;
        rows.push(TraceRow { at, ..TraceRow::of(count(prompt)?, count(output)?) });
    }
    Ok(rows)
}

/// Reads seconds, or a date and time such as `2023-11-16 18:15:46.6805900`.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.trim_end_matches('Z');
    let time = time.split_once('+').map_or(time, |(time, _)| time);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (time.next()??, time.next()??, time.next()??);
    Some((days(year, month, day) * 24) as f64 * 3600.0 + hours * 3600.0 + minutes * 60.0 + seconds)
}

/// Returns the days from some start to a date: years begin in March, so that the leap day ends one.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (month * 153 + 2) / 5
        + day
}

#[derive(Deserialize)]
struct MooncakeRow {
    timestamp: f64,
    input_length: usize,
    output_length: usize,
    #[serde(default)]
    hash_ids: Vec<u64>,
    ttft_slo: Option<f64>,
    tpot_slo: Option<f64>,
}

fn mooncake_rows(path: &Path) -> Result<Vec<TraceRow>> {
    let file = File::open(path).map_err(Error::file(path))?;
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(Error::file(path))?;
        if line.trim().is_empty() {
            continue;
        }
        let row: MooncakeRow = serde_json::from_str(&line)
            .map_err(|error| Error::content(path, &format!("line {}: {error}", index + 1)))?;
        let limit = |ms: Option<f64>| ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
        rows.push(TraceRow {
            at: Some(row.timestamp / 1000.0),
            blocks: row.hash_ids,
            slo: Slo { ttft: limit(row.ttft_slo), tpot: limit(row.tpot_slo) },
            ..TraceRow::of(row.input_length, row.output_length)
        });
    }
    Ok(rows)
}

#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

fn sharegpt_rows(path: &Path, count_tokens: CountTokens<'_>) -> Result<Vec<TraceRow>> {
    let file = File::open(path).map_err(Error::file(path))?;
    let all: Vec<Conversation> = serde_json::from_reader(BufReader::new(file))
        .map_err(|error| Error::content(path, &error))?;
    let rows = all.into_iter().filter_map(|conversation| {
        let mut turns = conversation.conversations.into_iter();
        let (question, answer) = (turns.next()?, turns.next()?);
        let row = TraceRow::of(count_tokens(&question.value), count_tokens(&answer.value));
        (row.prompt_len > 0 && row.output_len > 0)
            .then_some(TraceRow { text: Some(question.value), ..row })
    });
    Ok(rows.collect())
}
