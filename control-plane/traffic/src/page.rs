//! A page of metrics in Prometheus' text form.

use std::fmt::Write as _;

use crate::metrics::Totals;

/// A histogram for each of `all`, with its labels.
pub(crate) fn durations(page: &mut String, name: &str, help: &str, all: &[(String, Totals)]) {
    let _written = writeln!(page, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (labels, totals) in all.iter().filter(|(_, totals)| totals.reached() > 0) {
        for (bound, count) in totals.histogram() {
            let _written = writeln!(page, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let (count, sum) = (totals.reached(), totals.nanos as f64 / 1e9);
        let _written = writeln!(
            page,
            "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"
        );
    }
}

/// Everything of one name; `samples` is given what puts a line: labels with their braces, and the value.
pub(crate) fn family(
    page: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl FnOnce(&mut dyn FnMut(&str, f64)),
) {
    let _written = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
    samples(&mut |labels, value| {
        let _written = writeln!(page, "{name}{labels} {value}");
    });
}

pub(crate) fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// What every Prometheus client says of its process; nothing where /proc is not readable.
pub(crate) fn process(page: &mut String) {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; fields are counted after it, the state being the third.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        family(page, "process_cpu_seconds_total", "counter", "Processor time used.", |put| {
            put("", (user + system) / ticks)
        });
    }
    if let Some(pages) = field(24) {
        let bytes = pages * rustix::param::page_size() as f64;
        family(page, "process_resident_memory_bytes", "gauge", "Resident memory.", |put| put("", bytes));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        let open = open.count() as f64;
        family(page, "process_open_fds", "gauge", "Open descriptors.", |put| put("", open));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    family(page, "process_max_fds", "gauge", "How many may be open.", |put| {
        put("", limit.map_or(f64::INFINITY, |n| n as f64))
    });
}
