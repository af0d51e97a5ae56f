//! Traces in what is wanted: which are kept, and what services are told of where to send theirs.

use std::net::SocketAddr;

use super::desired::{DesiredTelemetry, exhausted, loopback};
use super::ports::Ports;
use crate::instance::SpecEnv;
use crate::snapshot::Tracing;
use crate::topology::{TelemetryProvider, Topology};
use crate::units::{Bytes, Span};

/// Who has the port to which services send spans.
const OWNER: &str = "telemetry";

pub(super) fn desired_telemetry(topology: &Topology, ports: &mut Ports) -> Result<DesiredTelemetry, String> {
    let TelemetryProvider::Embedded(telemetry) = &topology.providers.telemetry;
    let listen = match fixed(topology) {
        Some(address) => address,
        None => loopback(ports.assign(OWNER).ok_or_else(|| exhausted(ports.range))?),
    };
    let default = Tracing::default();
    Ok(DesiredTelemetry {
        listen,
        keep: telemetry.keep.unwrap_or(Span::from_secs(24 * 3600)),
        max_size: telemetry.max_size.unwrap_or(Bytes(1 << 30)),
        tracing: Tracing {
            traces_per_s: telemetry.sample.map_or(default.traces_per_s, |rate| rate.0),
            slow_ms: telemetry.slow.map_or(default.slow_ms, Span::as_millis),
        },
    })
}

/// Port 0 is one of our choice, as it is elsewhere.
fn fixed(topology: &Topology) -> Option<SocketAddr> {
    let TelemetryProvider::Embedded(telemetry) = &topology.providers.telemetry;
    telemetry.listen.as_deref()?.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

pub(super) fn fixed_port(topology: &Topology) -> Option<u16> {
    fixed(topology).map(|address| address.port())
}

/// What any OpenTelemetry SDK reads.
pub(super) fn environment(telemetry: &DesiredTelemetry, service: &str) -> [(String, SpecEnv); 3] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", telemetry.listen)),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
        ("OTEL_SERVICE_NAME", service.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), SpecEnv::Text(value)))
}

#[cfg(test)]
mod tests {
    use crate::delivery::{COURIER, COURIER_CONFIG, CourierConfig};
    use crate::load::{SourceFile, Sources, load};
    use crate::plan::{Desired, Observed, Overlay, render, snapshot};

    use super::*;

    fn desired(text: &str, ports: &mut Ports) -> Desired {
        let file = SourceFile { name: "shop.yaml".into(), folder: "/".into(), text: text.into() };
        let loaded = load(&Sources { files: vec![file], ..Sources::default() });
        let topology = loaded.topology.unwrap_or_else(|| panic!("{:?}", loaded.findings));
        render(&topology, &Overlay::default(), ports).expect("enough ports")
    }

    fn text<'a>(desired: &'a Desired, service: &str, name: &str) -> Option<&'a str> {
        match desired.services[service].template.env.get(name)? {
            SpecEnv::Text(text) => Some(text),
            SpecEnv::File(_) => None,
        }
    }

    #[test]
    fn what_is_written_reaches_the_data_plane_and_the_services() {
        let shop = "
providers: { telemetry: { embedded: { keep: 2h, maxSize: 64MiB, sample: 5/s, slow: 100ms, listen: '127.0.0.1:4318' } } }
services:
  a: { builtin: hello }
  c: { builtin: hello, publishes: [done] }
  b: { builtin: hello, env: { OTEL_SERVICE_NAME: other, OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector:4318' } }
channels: { done: { subscriptions: { a: { deliver: /done } } } }";
        let desired = desired(shop, &mut Ports::default());
        let telemetry = desired.telemetry.as_ref().expect("telemetry");
        assert_eq!((telemetry.keep, telemetry.max_size), (Span::from_secs(7_200), Bytes(64 << 20)));
        let data_plane = snapshot(&desired, &Observed::default(), &Default::default(), 1);
        assert_eq!(data_plane.tracing, Tracing { traces_per_s: 5.0, slow_ms: 100 });
        let courier: CourierConfig =
            serde_json::from_str(&desired.services[COURIER].template.files[COURIER_CONFIG]).expect("a configuration");
        assert_eq!(courier.tracing, data_plane.tracing);
        assert_eq!(text(&desired, "a", "OTEL_EXPORTER_OTLP_ENDPOINT"), Some("http://127.0.0.1:4318"));
        assert_eq!(text(&desired, "a", "OTEL_EXPORTER_OTLP_PROTOCOL"), Some("http/protobuf"));
        assert_eq!(text(&desired, "a", "OTEL_SERVICE_NAME"), Some("a"));
        assert_eq!(text(&desired, "b", "OTEL_SERVICE_NAME"), Some("other"), "the topology holds");
        assert_eq!(text(&desired, "b", "OTEL_EXPORTER_OTLP_ENDPOINT"), Some("http://collector:4318"));
    }

    #[test]
    fn without_a_word_there_is_an_automatic_port_that_stays() {
        let mut ports = Ports::default();
        let first = desired("services: { a: { builtin: hello } }", &mut ports);
        let again = desired("services: { a: { builtin: hello }, b: { builtin: hello } }", &mut ports);
        let listen = |desired: &Desired| desired.telemetry.as_ref().map(|telemetry| telemetry.listen);
        assert_eq!(listen(&first), listen(&again));
        assert!(listen(&first).is_some_and(|address| address.ip().is_loopback()));
        assert_eq!(first.services["a"].hash, again.services["a"].hash, "nothing has to be started anew");
    }
}
