//! What a topology leaves to where its files are: its name, and the folders that paths start from.

use super::{At, syntax};
use crate::load::{SourceFile, Sources};
use crate::topology::{EnvSource, EnvValue, Topology};

/// Fills in the name and makes every path absolute, without looking at the disk.
pub(super) fn complete(topology: &mut Topology, services: &[At<'_>], sources: &Sources) {
    let first = &sources.files[0];
    topology.name.get_or_insert_with(|| default_name(first));
    let file = |at: At<'_>| sources.files.get(at.key().file as usize).unwrap_or(first);
    for (service, &at) in topology.services.values_mut().zip(services) {
        service.working_dir = Some(match &service.working_dir {
            None => normalised(&file(at).folder, ""),
            Some(path) => normalised(&file(at.get("workingDir")).folder, path),
        });
        for (variable, value) in &mut service.env {
            if let EnvValue::From(EnvSource::File(path)) = value {
                *path = normalised(&file(at.get("env").get(variable)).folder, path);
            }
        }
    }
}

/// `path` seen from `folder`, without `.` and `..`.
fn normalised(folder: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The file's name, or its folder's where the file is called as every other; made to fit the form of a name.
fn default_name(file: &SourceFile) -> String {
    let name = file.name.rsplit('/').next().unwrap_or_default();
    let folder = || file.folder.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stem = match name {
        "topology.yaml" | "topology.yml" | "main.yaml" => folder(),
        _ => name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml")).unwrap_or(name),
    };
    [stem, folder()].into_iter().map(fitted).find(|name| syntax::is_name(name)).unwrap_or_else(|| "topology".into())
}

fn fitted(text: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(fit).take(63).collect();
    name.trim_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        for (folder, path, expected) in [
            ("/srv/shop", "", "/srv/shop"),
            ("/srv/shop", "./mailer", "/srv/shop/mailer"),
            ("/srv/shop/", "../x/./y", "/srv/x/y"),
            ("/srv", "../../../etc", "/etc"),
            ("/srv", "/opt//a/..", "/opt"),
            ("/", ".", "/"),
        ] {
            assert_eq!(normalised(folder, path), expected, "{folder} {path}");
        }
    }

    #[test]
    fn the_name_comes_from_the_file() {
        for (file, folder, expected) in [
            ("shop.yaml", "/srv/x", "shop"),
            ("a/b/My_Shop.yml", "/srv/x", "my-shop"),
            ("topology.yaml", "/srv/billing", "billing"),
            ("x/main.yaml", "/srv/Billing 2/", "billing-2"),
            ("-", "/srv/x", "x"),
            ("topology.yml", "/", "topology"),
        ] {
            let file = SourceFile { name: file.into(), folder: folder.into(), text: String::new() };
            assert_eq!(default_name(&file), expected);
        }
    }
}
