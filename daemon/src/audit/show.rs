//! The log for people, and the part of it that is asked for.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use serde::Serialize;

use super::{Asker, Record, Report, verify};

/// Which records are shown: those that fit everything given.
#[derive(Debug, Default)]
pub struct Filter {
    /// Of this claim.
    pub claim: Option<String>,
    /// About this device, or a partition of it.
    pub device: Option<String>,
    /// Of a claim with a label of this value, or of the pod `NAMESPACE/NAME`.
    pub agent: Option<String>,
    /// Not older than this, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A record with its hash, as `-o json` shows it: one a line.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    record: &'a Record,
    hash: &'a str,
}

impl Filter {
    fn fits(&self, record: &Record) -> bool {
        let entry = &record.entry;
        let is_of = |agent: &str| {
            let value = |of: &str| entry.labels.values().any(|value| value == of);
            value(agent)
                || agent.split_once('/').is_some_and(|(space, name)| value(space) && value(name))
        };
        let touches = |device: &str| {
            let of_it = |target: &String| {
                target
                    .strip_prefix(device)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            };
            entry.devices.iter().any(of_it)
        };
        entry.at_ms >= self.since_ms
            && self.claim.as_ref().is_none_or(|claim| *claim == entry.claim)
            && self.device.as_deref().is_none_or(touches)
            && self.agent.as_deref().is_none_or(is_of)
    }
}

/// Prints the records that fit, and gives what was found about the log meanwhile.
pub fn show(path: &Path, filter: &Filter, json: bool, out: &mut dyn Write) -> io::Result<Report> {
    let mut written = Ok(());
    let report = verify(path, None, |record, hash| {
        if written.is_ok() && filter.fits(record) {
            written = if json {
                serde_json::to_string(&Shown { record, hash })
                    .map_err(io::Error::from)
                    .and_then(|line| writeln!(out, "{line}"))
            } else {
                writeln!(out, "{}", in_words(record))
            };
        }
    })?;
    written.map(|()| report)
}

/// A record on one line. What a tenant chose is shown without control characters.
fn in_words(record: &Record) -> String {
    let entry = &record.entry;
    let mut words = vec![record.n.to_string(), time(entry.at_ms), entry.kind.clone()];
    words.extend(Some(entry.claim.clone()).filter(|claim| !claim.is_empty()));
    if entry.kind != "prepared" && !entry.devices.is_empty() {
        words.push(format!("({})", entry.devices.join(", ")));
    }
    words.push(format!("{}:", by(&entry.by)));
    words.push(entry.message.clone());
    words.extend(Some(format!("[{}]", entry.code)).filter(|_| !entry.code.is_empty()));
    words.join(" ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn by(asker: &Asker) -> String {
    match (asker.uid, asker.pid) {
        (None, _) => "by the daemon".to_owned(),
        (Some(uid), None) => format!("by uid {uid}"),
        (Some(uid), Some(pid)) => format!("by uid {uid} pid {pid}"),
    }
}

/// RFC 3339, in UTC.
fn time(unix_ms: u64) -> String {
    let (days, of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Days are counted from the first of March of the year 0, in eras of 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, millis) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

/// A span of time as it is typed: `90s`, `15m`, `2h`, `7d`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no span of time: write 90s, 15m, 2h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number = number.parse::<u32>().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::Entry, *};

    #[test]
    fn times_and_spans_are_read_and_written() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_764_000_055_123), "2025-11-24T16:00:55.123Z");
        assert_eq!(parse_span("2h"), Ok(Duration::from_hours(2)));
        for wrong in ["", "2", "h", "2w", "-1s", "99999999999d", "2\u{e9}"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_filter_takes_what_fits_everything() {
        let labels =
            BTreeMap::from([("ns".into(), "lab".into()), ("pod".into(), "train-0".into())]);
        let entry = Entry {
            at_ms: 1000,
            kind: "prepared".into(),
            claim: "c".into(),
            devices: vec!["gpu-0000-3b-00-0-mig-1g".into()],
            message: "granted\n".into(),
            labels,
            ..Entry::default()
        };
        let record = Record { n: 7, previous: String::new(), entry };
        let fits = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.fits(&record)
        };
        assert!(fits(|_| ()));
        assert!(fits(|filter| filter.claim = Some("c".into())));
        assert!(!fits(|filter| filter.claim = Some("d".into())));
        assert!(fits(|filter| filter.device = Some("gpu-0000-3b-00-0".into())));
        assert!(!fits(
            |filter| filter.device = Some("gpu-0000-3b-00".into()).map(|d: String| d + "-1")
        ));
        assert!(fits(|filter| filter.agent = Some("lab/train-0".into())));
        assert!(!fits(|filter| filter.agent = Some("lab/train-1".into())));
        assert!(!fits(|filter| filter.since_ms = 1001));
        let words = "7 1970-01-01T00:00:01.000Z prepared c by the daemon: granted\u{fffd}";
        assert_eq!(in_words(&record), words);
    }
}
