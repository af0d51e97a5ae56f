//! What the language will have and this version does not: said as such, instead of as an unknown key.

/// A word of a later version: the type in which it stands, the word, and what it is.
const LATER: [(&str, &str, &str); 16] = [
    ("Topology", "channels", "messages between services"),
    ("Topology", "flows", "business flows"),
    ("Topology", "slo", "service level objectives"),
    ("Service", "publishes", "messages between services"),
    ("EnvSource", "publishUrlOf", "messages between services"),
    ("Providers", "broker", "messages between services"),
    ("Providers", "telemetry", "collecting traces, metrics and logs"),
    ("RuntimeProvider", "docker", "the docker runtime"),
    ("RuntimeProvider", "kubernetes", "the kubernetes runtime"),
    ("GatewayProvider", "envoy", "the envoy gateway"),
    ("GatewayProvider", "nginx", "the nginx gateway"),
    ("GatewayProvider", "istio", "the istio gateway"),
    ("Mesh", "sidecar", "a gateway beside every service"),
    ("RegistryProvider", "consul", "the consul registry"),
    ("RegistryProvider", "eureka", "the eureka registry"),
    ("Route", "cache", "caching of responses"),
];

/// What `word` in a value of the type `owner` will be.
pub(crate) fn later(owner: &str, word: &str) -> Option<&'static str> {
    LATER.iter().find(|(of, name, _)| *of == owner && *name == word).map(|(_, _, what)| *what)
}

/// Words of other tools: the type in which somebody may write it, the word, and ours.
const ELSEWHERE: [(&str, &str, &str); 17] = [
    ("Service", "instances", "replicas"),
    ("Service", "scale", "replicas"),
    ("Service", "environment", "env"),
    ("Service", "ports", "port"),
    ("Service", "cmd", "command"),
    ("Service", "exec", "command"),
    ("Service", "run", "command"),
    ("Service", "cwd", "workingDir"),
    ("Service", "healthcheck", "health"),
    ("Service", "limits", "resources"),
    ("Route", "service", "to"),
    ("Route", "backend", "to"),
    ("Route", "method", "methods"),
    ("Route", "timeout", "deadline"),
    ("EdgePolicy", "timeout", "deadline"),
    ("EdgePolicy", "retries", "retry"),
    ("Route", "retries", "retry"),
];

/// Our word for what other tools call `word`.
pub(crate) fn ours(owner: &str, word: &str) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(of, theirs, _)| *of == owner && *theirs == word).map(|(_, _, ours)| *ours)
}
