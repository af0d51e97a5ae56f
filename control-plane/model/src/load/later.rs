//! What the language will have and this version does not: said as such, instead of as an unknown key.

/// A word of a later version: the type in which it stands, the word, and what it is.
const LATER: &[(&str, &str, &str)] = &[
    ("TelemetryProvider", "otlp", "sending traces elsewhere"),
    ("TelemetryProvider", "prometheus", "sending metrics elsewhere"),
    ("TelemetryProvider", "elasticsearch", "sending logs elsewhere"),
    ("RuntimeProvider", "docker", "the docker runtime"),
    ("RuntimeProvider", "kubernetes", "the kubernetes runtime"),
    ("GatewayProvider", "envoy", "the envoy gateway"),
    ("GatewayProvider", "nginx", "the nginx gateway"),
    ("GatewayProvider", "istio", "the istio gateway"),
    ("Mesh", "sidecar", "a gateway beside every service"),
    ("RegistryProvider", "consul", "the consul registry"),
    ("RegistryProvider", "eureka", "the eureka registry"),
    ("BrokerProvider", "kafka", "the kafka broker"),
    ("BrokerProvider", "rabbitmq", "the rabbitmq broker"),
    ("Route", "cache", "caching of responses"),
    ("Channel", "schema", "checking payloads against a schema"),
];

/// What `word` in a value of the type `owner` will be.
pub(crate) fn later(owner: &str, word: &str) -> Option<&'static str> {
    LATER.iter().find(|(of, name, _)| *of == owner && *name == word).map(|(_, _, what)| *what)
}

/// Words of other tools: the type in which somebody may write it, the word, and ours.
const ELSEWHERE: &[(&str, &str, &str)] = &[
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
    ("Topology", "topic", "channels"),
    ("Topology", "topics", "channels"),
    ("Topology", "queue", "channels"),
    ("Topology", "queues", "channels"),
    ("Topology", "events", "channels"),
    ("Topology", "scenarios", "flows"),
    ("Topology", "slos", "slo"),
    ("Topology", "objectives", "slo"),
    ("FlowRequest", "url", "request"),
    ("FlowRequest", "path", "request"),
    ("FlowRequest", "payload", "body"),
    ("FlowRequest", "expect", "done"),
    ("Slo", "objective", "expect"),
    ("Service", "produces", "publishes"),
    ("Service", "emits", "publishes"),
    ("Service", "topics", "publishes"),
    ("Channel", "consumers", "subscriptions"),
    ("Channel", "subscribers", "subscriptions"),
    ("Channel", "groups", "subscriptions"),
    ("Channel", "ttl", "retention"),
    ("Channel", "partitionKey", "key"),
    ("Subscription", "url", "deliver"),
    ("Subscription", "path", "deliver"),
    ("Subscription", "endpoint", "deliver"),
    ("Subscription", "to", "service"),
    ("Subscription", "maxRetries", "retry.attempts"),
    ("Subscription", "maxAttempts", "retry.attempts"),
    ("Subscription", "retries", "retry"),
    ("Subscription", "backoff", "retry.backoff"),
    ("Subscription", "prefetch", "concurrency"),
    ("Subscription", "dlq", "deadLetter"),
    ("Subscription", "deadLetterQueue", "deadLetter"),
    ("DeliveryRetry", "maxAttempts", "attempts"),
    ("DeliveryRetry", "delay", "backoff"),
    ("DeliveryRetry", "delays", "backoff"),
];

/// Our word for what other tools call `word`.
pub(crate) fn ours(owner: &str, word: &str) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(of, theirs, _)| *of == owner && *theirs == word).map(|(_, _, ours)| *ours)
}
