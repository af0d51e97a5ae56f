//! What is wrong with a topology: where, why, and what to do.

use serde::{Deserialize, Serialize};

/// One thing that validation found. Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    /// Stable: `unknown-key`, `unknown-service`; all of them are in [`CODES`].
    pub code: String,
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub end_line: usize,
    pub end_column: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The topology is refused.
    Error,
    /// It is accepted, and probably not what is meant.
    Warning,
}

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub name: &'static str,
    pub severity: Severity,
    /// What it means, in a line.
    pub about: &'static str,
}

macro_rules! codes {
    ($($id:ident $name:literal $severity:ident $about:literal;)+) => {
        $(pub(crate) const $id: Code = Code { name: $name, severity: Severity::$severity, about: $about };)+

        /// Every kind of finding. A name is never reused for something else.
        pub const CODES: &[Code] = &[$($id),+];
    };
}

codes! {
    // reading
    SYNTAX "syntax" Error "The text is not YAML.";
    TOO_LARGE "too-large" Error "The files hold more than meshctl is willing to read.";
    TOO_DEEP "too-deep" Error "Lists and maps are nested too deeply.";
    DUPLICATE_KEY "duplicate-key" Error "A key stands twice in the same map.";
    BAD_KEY "bad-key" Error "A key is not text.";
    UNSUPPORTED_TAG "unsupported-tag" Error "A YAML tag means nothing in the topology language.";
    SELF_REFERENCE "self-reference" Error "An alias stands inside of what it refers to.";
    BAD_VARIABLE "bad-variable" Error "A `${…}` is written wrongly.";
    UNSET_VARIABLE "unset-variable" Error "A variable is not set and has no default.";
    CONFLICT "conflict" Error "Two files say different things about the same.";

    // structure
    UNKNOWN_KEY "unknown-key" Error "The language has no such key here.";
    MISSING_KEY "missing-key" Error "A key that must be there is not.";
    WRONG_TYPE "wrong-type" Error "A value is of another type than its key wants.";
    UNKNOWN_VALUE "unknown-value" Error "A word is not among those that its key knows.";
    OUT_OF_RANGE "out-of-range" Error "A number is too small or too large.";
    BAD_QUANTITY "bad-quantity" Error "A duration, size, percentage or rate cannot be read.";
    ONE_CHOICE "one-choice" Error "Exactly one of several keys must be chosen.";
    NOT_YET "not-yet" Error "A later version of meshctl brings this.";
    INTERNAL "internal" Error "meshctl contradicts itself; please report it.";

    // meaning
    NO_SERVICES "no-services" Error "There is nothing to run.";
    BAD_NAME "bad-name" Error "A name has characters that do not belong into one.";
    UNKNOWN_SERVICE "unknown-service" Error "A service is named that does not exist.";
    UNKNOWN_BUILTIN "unknown-builtin" Error "meshctl does not come with that reference service.";
    NO_PROGRAM "no-program" Error "A service does not say what to run.";
    SEVERAL_PROGRAMS "several-programs" Error "A service says twice what to run.";
    EMPTY_COMMAND "empty-command" Error "A command has no program.";
    FIXED_PORT_SHARED "fixed-port-shared" Error "Several processes would have to listen on one port.";
    PORT_CLASH "port-clash" Error "One port is given to two things.";
    PORT_IN_RANGE "port-in-range" Warning "A fixed port lies among the automatic ones.";
    NO_PORT "no-port" Error "Something needs the port of a service that has none.";
    BAD_ADDRESS "bad-address" Error "An address to listen on cannot be read.";
    BAD_PORT_RANGE "bad-port-range" Error "A range of ports cannot be read.";
    SELF_CALL "self-call" Error "A service calls itself.";
    START_CYCLE "start-cycle" Error "Services wait for each other to start.";
    NEVER_READY "never-ready" Error "A service waits for one that has no instances.";
    CALL_CYCLE "call-cycle" Error "Services call each other in a circle that no deadline ends.";
    DUPLICATE_ROUTE "duplicate-route" Error "Two routes take the same requests.";
    BAD_WEIGHTS "bad-weights" Error "The weights of a route are not 100% together.";
    BAD_METHOD "bad-method" Error "An HTTP method is written wrongly.";
    BAD_PATH "bad-path" Error "A path is written wrongly.";
    BAD_HOST "bad-host" Error "A host is written wrongly.";
    BAD_HEADER "bad-header" Error "A header is written wrongly.";
    BAD_ENV_NAME "bad-env-name" Error "An environment variable cannot have that name.";
    RESERVED_ENV "reserved-env" Error "An environment variable is set by meshctl itself.";
    SEVERAL_CHECKS "several-checks" Error "A health check is of several kinds at once.";
    ZERO "zero" Error "A quantity must be more than zero.";
    ATTEMPT_BEYOND_DEADLINE "attempt-beyond-deadline" Error "One attempt may take longer than all of them together.";
    DEADLINE_BEYOND_CALLER "deadline-beyond-caller" Warning "A deadline is longer than any caller waits.";
    RETRIES_BEYOND_DEADLINE "retries-beyond-deadline" Warning "There is no time for the retries.";
    RETRY_AMPLIFICATION "retry-amplification" Warning "Retries multiply along a path of calls.";
    UNKNOWN_CHANNEL "unknown-channel" Error "A channel is named that does not exist.";
    NO_PUBLISHER "no-publisher" Warning "Nobody publishes to a channel.";
    NO_SUBSCRIBER "no-subscriber" Warning "Nobody receives the messages of a channel.";
    BAD_FIELD "bad-field" Error "The way to a field of a payload is written wrongly.";
    MESSAGE_BEYOND_CHANNEL "message-beyond-channel" Error "One message may be larger than all of its channel.";
    MESSAGE_BEYOND_GATEWAY "message-beyond-gateway" Warning "One message may be larger than any request.";
    LONG_TIMEOUT "long-timeout" Warning "An attempt to deliver may take very long.";
    BACKOFF_NOT_RISING "backoff-not-rising" Warning "A later pause before a retry is shorter than an earlier one.";
    SHORT_RETENTION "short-retention" Warning "Messages are kept for a shorter time than retries take.";
    MESSAGE_LOOP "message-loop" Warning "Messages may go round in a circle for ever.";
    UNKNOWN_FLOW "unknown-flow" Error "A flow is named that does not exist.";
    EMPTY_FLOW "empty-flow" Error "A flow does not say what to send.";
    BAD_REQUEST "bad-request" Error "The request of a flow is written wrongly.";
    NO_ROUTE "no-route" Error "No route leads anywhere for the request of a flow.";
    BAD_PLACEHOLDER "bad-placeholder" Error "A `{{…}}` of a flow means nothing.";
    NOT_VISIBLE "not-visible" Error "An asynchronous flow does not say where its effect shows.";
    BAD_OBJECTIVE "bad-objective" Error "A service level objective is written wrongly.";

    MORE "more-findings" Error "There are more findings than are shown.";
}
