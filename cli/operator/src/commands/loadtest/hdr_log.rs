//! The latencies as an HdrHistogram log (format V2, compressed, values in nanoseconds): what its readers in every language and
//! its plotter take. The interval without a tag counts from intended send times.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use meshctl_load::Outcome;

use crate::failure::Failure;

/// Values are nanoseconds, and the column for people is in milliseconds.
const MILLISECOND: f64 = 1e6;

pub(super) struct Log {
    path: PathBuf,
    file: File,
}

/// Before the run: afterwards it would be lost.
pub(super) fn create(path: &Path) -> Result<Log, Failure> {
    let file =
        File::create(path).map_err(|error| Failure::file(format_args!("cannot write {}", path.display()), &error))?;
    Ok(Log { path: path.to_owned(), file })
}

pub(super) fn write(log: Log, measured: &Outcome) -> Result<(), Failure> {
    write_to(BufWriter::new(log.file), measured)
        .map_err(|error| Failure::file(format_args!("cannot write {}", log.path.display()), &error))
}

fn write_to(mut to: impl Write, measured: &Outcome) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let report = &measured.report;
    let began = SystemTime::from(measured.measured_at);
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("[meshctl loadtest: nanoseconds; without a tag from intended send times]");
    for reason in &report.validity.reasons {
        builder.add_comment(&format!("[INVALID: {}]", reason.replace('\n', " ")));
    }
    builder.with_start_time(began).with_base_time(began).with_max_value_divisor(MILLISECOND);
    let mut log = builder.begin_log_with(&mut to, &mut serializer)?;
    let length = Duration::try_from_secs_f64(report.duration_s).unwrap_or_default();
    let tagged = [
        (None, &measured.corrected),
        (Some("uncorrected"), &measured.uncorrected),
        (Some("visible"), &measured.completion),
    ];
    for (tag, histogram) in tagged.into_iter().filter(|(tag, histogram)| tag.is_none() || !histogram.is_empty()) {
        log.write_histogram(histogram, Duration::ZERO, length, tag.and_then(Tag::new))
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::show::load::tests::measured;

    #[test]
    fn what_is_written_reads_back() {
        let measured = measured();
        let mut written = Vec::new();
        write_to(&mut written, &measured).expect("memory takes it");
        let entries: Vec<LogEntry<'_>> =
            IntervalLogIterator::new(&written).collect::<Result<_, _>>().expect("it is a log");
        let intervals: Vec<_> = entries
            .iter()
            .filter_map(|entry| match entry {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        assert_eq!(
            intervals.iter().map(|one| one.tag().map(|tag| tag.as_str())).collect::<Vec<_>>(),
            [None, Some("uncorrected")]
        );
        let bytes = STANDARD.decode(intervals[0].encoded_histogram()).expect("base64");
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).expect("a histogram");
        assert_eq!(read.len(), measured.corrected.len());
        assert_eq!(read.value_at_quantile(0.99), measured.corrected.value_at_quantile(0.99));
    }
}
