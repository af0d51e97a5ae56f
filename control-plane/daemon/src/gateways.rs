//! Gateway processes are instances like any other, made from templates of the daemon's own.

use std::collections::BTreeMap;
use std::path::Path;

use meshctl_model::GATEWAY;
use meshctl_model::instance::{Check, InstanceSpec, Probe, Program};
use meshctl_model::plan::{DesiredGateway, DesiredService, Template};
use meshctl_model::topology::Resources;
use meshctl_model::units::{Bytes, Span};
use sha2::{Digest, Sha256};

/// What a gateway keeps: its last snapshot and its sockets. One folder for each slot, whichever instance is in it, so that
/// a successor finds its predecessor.
pub fn folder(state_dir: &Path, slot: u32) -> std::path::PathBuf {
    state_dir.join("gateways").join(slot.to_string())
}

/// Everything that makes one gateway process different from another. The build belongs to it: a newer binary takes over.
pub fn templates(desired: Option<&DesiredGateway>, state_dir: &Path, build: &str) -> BTreeMap<u32, DesiredService> {
    let Some(gateway) = desired else { return BTreeMap::new() };
    (1..=gateway.instances)
        .zip(&gateway.metrics)
        .map(|(slot, metrics)| {
            let folder = folder(state_dir, slot).display().to_string();
            let siblings = state_dir.join("gateways/shared").display().to_string();
            let mut arguments = vec![GATEWAY.to_owned(), "--dir".into(), folder];
            arguments.extend(["--siblings".into(), siblings, "--metrics".into(), metrics.to_string()]);
            if let Some(threads) = gateway.threads {
                arguments.extend(["--threads".to_owned(), threads.to_string()]);
            }
            let template = Template {
                program: Program::Meshctl(arguments),
                env: BTreeMap::new(),
                files: BTreeMap::new(),
                working_dir: "/".into(),
                fixed_port: None,
                listens: false,
                exclusive: false,
                health: Probe {
                    check: Check::Running,
                    interval: Span::from_secs(1),
                    timeout: Span::from_secs(2),
                    failures: 3,
                },
                grace: Span::from_secs(35),
                resources: Resources::default(),
                log_max_size: Bytes(8 << 20),
                log_files: 2,
                restarts: 0,
            };
            let text = serde_json::to_vec(&(&template, build)).unwrap_or_default();
            let hash: String = Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            let service = DesiredService {
                kind: GATEWAY.into(),
                template,
                hash,
                replicas: 1,
                depends_on: Vec::new(),
                drain: Span::from_secs(30),
                start_timeout: Span::from_secs(15),
                labels: BTreeMap::new(),
            };
            (slot, service)
        })
        .collect()
}

/// The slot of a gateway instance, read from the folder that it was given.
pub fn slot_of(spec: &InstanceSpec) -> u32 {
    let Program::Meshctl(arguments) = &spec.program else { return 0 };
    let folder = arguments.iter().skip_while(|argument| *argument != "--dir").nth(1);
    folder.and_then(|folder| folder.rsplit('/').next()).and_then(|slot| slot.parse().ok()).unwrap_or(0)
}
