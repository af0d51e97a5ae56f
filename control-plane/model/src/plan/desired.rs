//! What is wanted, with every default filled in and every address known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::messages;
use super::ports::{PortRange, Ports};
use super::routing::{edge_name, route_rules};
use super::telemetry::{self, desired_telemetry};
use crate::GATEWAY;
use crate::delivery::Channel;
use crate::flow::{Flow, flows};
use crate::instance::{Check, InstanceSpec, Probe, Program, SpecEnv};
use crate::policy::Policy;
use crate::snapshot::{Limits, RouteRule, Tracing};
use crate::topology::{
    EmbeddedGateway, EnvSource, EnvValue, GATEWAY_LISTEN, GatewayProvider, Health, RegistryProvider, Resources,
    RuntimeProvider, Service, Topology,
};
use crate::units::{Bytes, Span};

/// What is wanted of the whole system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    pub name: String,
    pub services: BTreeMap<String, DesiredService>,
    /// `None` when nothing is wanted at all.
    pub gateway: Option<DesiredGateway>,
    pub routes: Vec<RouteRule>,
    /// By name, `caller:callee`.
    pub edges: BTreeMap<String, DesiredEdge>,
    /// By name.
    #[serde(default)]
    pub channels: BTreeMap<String, Channel>,
    /// By name. Nothing runs differently for them.
    #[serde(default)]
    pub flows: BTreeMap<String, Flow>,
    /// `None` when nothing is wanted at all.
    #[serde(default)]
    pub telemetry: Option<DesiredTelemetry>,
    /// How long a registration from outside lives by default.
    pub lease: Span,
    pub ports: PortRange,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredService {
    /// `builtin`, `command`, or `broker` and `courier`, which are there where there are channels.
    pub kind: String,
    pub template: Template,
    /// Of the template: instances with another one are replaced.
    pub hash: String,
    pub replicas: u32,
    pub depends_on: Vec<String>,
    pub drain: Span,
    pub start_timeout: Span,
    pub labels: BTreeMap<String, String>,
}

/// What all instances of a service have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    pub program: Program,
    pub env: BTreeMap<String, SpecEnv>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    pub working_dir: String,
    pub fixed_port: Option<u16>,
    pub listens: bool,
    /// Two of it cannot run at once, not even while one replaces the other: the old one ends before the new one starts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    pub health: Probe,
    pub grace: Span,
    pub resources: Resources,
    pub log_max_size: Bytes,
    pub log_files: u32,
    /// Rises with each `meshctl restart`, which is nothing but a new template.
    pub restarts: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredGateway {
    pub listen: SocketAddr,
    pub instances: u32,
    pub threads: Option<u32>,
    /// One for each instance.
    pub metrics: Vec<SocketAddr>,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredEdge {
    pub caller: String,
    pub callee: String,
    pub policy: Policy,
    /// Where the caller finds it; `None` for edges from outside.
    pub address: Option<SocketAddr>,
}

/// Which traces are kept, for how long, and where services send theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredTelemetry {
    /// OTLP/HTTP.
    pub listen: SocketAddr,
    pub keep: Span,
    pub max_size: Bytes,
    pub tracing: Tracing,
}

/// What operators said beside the file, which the file does not contradict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Overlay {
    /// Holds until a file is applied that names `replicas` for the service.
    pub replicas: BTreeMap<String, u32>,
    pub restarts: BTreeMap<String, u64>,
}

/// Fills in everything that `topology` leaves open. Ports of edges and metrics come from `ports`, which remembers them.
///
/// # Errors
/// When the range of ports is exhausted, with the words for the operator.
pub fn render(topology: &Topology, overlay: &Overlay, ports: &mut Ports) -> Result<Desired, String> {
    let RuntimeProvider::Process(runtime) = &topology.providers.runtime;
    ports.range = match &runtime.ports {
        Some(text) => text.parse()?,
        None => PortRange::default(),
    };
    let GatewayProvider::Embedded(gateway) = &topology.providers.gateway;
    let RegistryProvider::Embedded(registry) = &topology.providers.registry;
    ports.reserved = reserved_ports(topology);

    let mut edges = edges(topology, ports)?;
    edges.append(&mut messages::edges(topology, ports)?);
    let channels = messages::channels(topology, &edges);
    let telemetry = desired_telemetry(topology, ports)?;
    let mut services: BTreeMap<String, DesiredService> = topology
        .services
        .iter()
        .map(|(name, service)| (name.clone(), desired_service(name, service, overlay, &edges, &telemetry)))
        .collect();
    services.append(&mut messages::services(topology, overlay, &channels));
    Ok(Desired {
        name: topology.name.clone().unwrap_or_default(),
        services,
        gateway: Some(desired_gateway(gateway, ports)?),
        routes: route_rules(topology),
        edges,
        channels,
        flows: flows(topology),
        telemetry: Some(telemetry),
        lease: registry.lease.unwrap_or(Span::from_secs(30)),
        ports: ports.range,
    })
}

pub(super) fn exhausted(range: PortRange) -> String {
    format!("all ports of {range} are taken; give providers.runtime.process.ports a wider range")
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Where requests from outside arrive when the topology does not say.
fn listen_address(gateway: &EmbeddedGateway) -> SocketAddr {
    let text = gateway.listen.as_deref().unwrap_or(GATEWAY_LISTEN);
    text.parse().unwrap_or_else(|_| loopback(8080))
}

/// The ports that the topology fixes, which are nobody else's.
pub fn reserved_ports(topology: &Topology) -> BTreeSet<u16> {
    let GatewayProvider::Embedded(gateway) = &topology.providers.gateway;
    let metrics =
        gateway.metrics.as_deref().and_then(|text| text.parse::<SocketAddr>().ok()).map(|address| address.port());
    let fixed = topology.services.values().filter_map(Service::fixed_port);
    let spans = telemetry::fixed_port(topology);
    fixed.chain([listen_address(gateway).port()]).chain(metrics).chain(spans).collect()
}

fn edges(topology: &Topology, ports: &mut Ports) -> Result<BTreeMap<String, DesiredEdge>, String> {
    let mut edges = BTreeMap::new();
    for (caller, service) in &topology.services {
        let declared = service.calls.keys();
        let implied = service.env.values().filter_map(|value| match value {
            EnvValue::From(EnvSource::UrlOf(callee)) => Some(callee),
            _ => None,
        });
        for callee in declared.chain(implied) {
            let name = edge_name(caller, callee);
            if edges.contains_key(&name) {
                continue;
            }
            let layers: Vec<_> = [Some(&topology.defaults), service.calls.get(callee)].into_iter().flatten().collect();
            let port = ports.assign(&format!("edge/{name}")).ok_or_else(|| exhausted(ports.range))?;
            edges.insert(
                name,
                DesiredEdge {
                    caller: caller.clone(),
                    callee: callee.clone(),
                    policy: Policy::resolve(&layers),
                    address: Some(loopback(port)),
                },
            );
        }
    }
    for (callee, _) in topology.routes.iter().flat_map(|route| route.targets()) {
        edges.entry(edge_name(GATEWAY, callee)).or_insert_with(|| DesiredEdge {
            caller: GATEWAY.into(),
            callee: callee.into(),
            policy: Policy::resolve(&[&topology.defaults]),
            address: None,
        });
    }
    Ok(edges)
}

fn desired_gateway(gateway: &EmbeddedGateway, ports: &mut Ports) -> Result<DesiredGateway, String> {
    let defaults = Limits::default();
    let limits = &gateway.limits;
    let instances = gateway.instances.unwrap_or(1);
    let fixed = gateway.metrics.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
    let metrics = (1..=instances)
        .map(|slot| match fixed {
            // Several gateways cannot share one metrics address: each has numbers of its own.
            Some(address) if slot == 1 => Ok(address),
            _ => ports.assign(&format!("metrics/{slot}")).map(loopback).ok_or_else(|| exhausted(ports.range)),
        })
        .collect::<Result<_, _>>()?;
    let ms = |span: Option<Span>, default| span.map_or(default, Span::as_millis);
    Ok(DesiredGateway {
        listen: listen_address(gateway),
        instances,
        threads: gateway.threads,
        metrics,
        limits: Limits {
            request_body_bytes: limits.request_body.map_or(defaults.request_body_bytes, |size| size.0),
            header_bytes: limits.headers.map_or(defaults.header_bytes, |size| size.0),
            header_timeout_ms: ms(limits.header_timeout, defaults.header_timeout_ms),
            idle_timeout_ms: ms(limits.idle_timeout, defaults.idle_timeout_ms),
            upgrade_idle_timeout_ms: ms(limits.upgrade_idle_timeout, defaults.upgrade_idle_timeout_ms),
        },
    })
}

fn desired_service(
    name: &str,
    service: &Service,
    overlay: &Overlay,
    edges: &BTreeMap<String, DesiredEdge>,
    telemetry: &DesiredTelemetry,
) -> DesiredService {
    let (kind, program) = match (&service.builtin, &service.command) {
        (Some(builtin), _) => ("builtin", Program::Meshctl(vec!["service".into(), builtin.clone()])),
        (None, command) => ("command", Program::Command(command.clone().unwrap_or_default())),
    };
    let written = service.env.iter().map(|(key, value)| {
        let value = match value {
            EnvValue::From(EnvSource::UrlOf(callee)) => SpecEnv::Text(edge_url(edges, name, callee)),
            EnvValue::From(EnvSource::PublishUrlOf(channel)) => {
                SpecEnv::Text(messages::publish_url(edges, name, channel))
            }
            EnvValue::From(EnvSource::File(path)) => SpecEnv::File(path.clone()),
            other => SpecEnv::Text(other.literal().unwrap_or_default()),
        };
        (key.clone(), value)
    });
    // What the topology says comes last, and holds.
    let told = messages::environment(edges, name).into_iter().chain(telemetry::environment(telemetry, name));
    let env = told.chain(written).collect();
    let template = Template {
        program,
        env,
        files: BTreeMap::new(),
        working_dir: service.working_dir.clone().unwrap_or_else(|| "/".into()),
        fixed_port: service.fixed_port(),
        listens: service.listens(),
        exclusive: false,
        health: probe(&service.health, service.listens()),
        grace: service.stop.grace.unwrap_or(Span::from_secs(10)),
        resources: service.resources.clone(),
        log_max_size: service.logs.max_size.unwrap_or(Bytes(8 << 20)),
        log_files: service.logs.files.unwrap_or(2),
        restarts: overlay.restarts.get(name).copied().unwrap_or(0),
    };
    DesiredService {
        kind: kind.into(),
        hash: template.hash(),
        template,
        replicas: overlay.replicas.get(name).copied().or(service.replicas).unwrap_or(1),
        depends_on: service.depends_on.clone(),
        drain: service.stop.drain.unwrap_or(Span::from_secs(10)),
        start_timeout: service.start_timeout.unwrap_or(Span::from_secs(30)),
        labels: service.labels.clone(),
    }
}

pub(super) fn edge_url(edges: &BTreeMap<String, DesiredEdge>, caller: &str, callee: &str) -> String {
    let address = edges.get(&edge_name(caller, callee)).and_then(|edge| edge.address);
    address.map(|address| format!("http://{address}")).unwrap_or_default()
}

fn probe(health: &Health, listens: bool) -> Probe {
    let check = match health {
        Health { http: Some(path), .. } => Check::Http(path.clone()),
        Health { exec: Some(command), .. } => Check::Exec(command.clone()),
        Health { tcp: Some(false), .. } => Check::Running,
        _ if listens => Check::Tcp,
        _ => Check::Running,
    };
    Probe {
        check,
        interval: health.interval.unwrap_or(Span::from_millis(500)),
        timeout: health.timeout.unwrap_or(Span::from_secs(1)),
        failures: health.failures.unwrap_or(2),
    }
}

impl Template {
    pub(super) fn hash(&self) -> String {
        super::digest(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// One instance of it; `{{port}}`, `{{instance}}` and `{{service}}` are filled in.
    pub fn instantiate(&self, service: &str, id: &str, port: Option<u16>) -> InstanceSpec {
        let port_text = port.map(|port| port.to_string()).unwrap_or_default();
        let fill = |text: &str| {
            text.replace("{{port}}", &port_text).replace("{{instance}}", id).replace("{{service}}", service)
        };
        let program = match &self.program {
            Program::Meshctl(arguments) => Program::Meshctl(arguments.iter().map(|text| fill(text)).collect()),
            Program::Command(arguments) => Program::Command(arguments.iter().map(|text| fill(text)).collect()),
        };
        let env = self.env.iter().map(|(key, value)| {
            let value = match value {
                SpecEnv::Text(text) => SpecEnv::Text(fill(text)),
                SpecEnv::File(path) => SpecEnv::File(path.clone()),
            };
            (key.clone(), value)
        });
        let mut health = self.health.clone();
        if let Check::Exec(command) = &mut health.check {
            for argument in command {
                *argument = fill(argument);
            }
        }
        InstanceSpec {
            id: id.into(),
            service: service.into(),
            program,
            env: env.collect(),
            files: self.files.clone(),
            working_dir: self.working_dir.clone(),
            port,
            health,
            grace: self.grace,
            resources: self.resources.clone(),
            log_max_size: self.log_max_size,
            log_files: self.log_files,
        }
    }
}
