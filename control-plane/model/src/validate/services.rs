//! One service at a time: what it runs, what it is told, how it is known to be well.

use super::at::At;
use super::{Context, asked_for, syntax};
use crate::GATEWAY;
use crate::delivery::{BROKER, COURIER, DAEMON};
use crate::finding::{
    BAD_ENV_NAME, BAD_NAME, BAD_PATH, EMPTY_COMMAND, NEVER_READY, NO_PORT, NO_PROGRAM, NOT_YET, RESERVED_ENV,
    SELF_CALL, SEVERAL_CHECKS, SEVERAL_PROGRAMS, UNKNOWN_BUILTIN, ZERO,
};
use crate::load::report::one_of;
use crate::load::suggest::nearest;
use crate::load::tree::Place;
use crate::topology::{BUILTINS, Service};
use crate::units::Bytes;

pub(super) fn check(context: &mut Context<'_, '_>) {
    for (name, service, at) in context.services() {
        naming(context, name, at);
        program(context, name, service, at);
        environment(context, name, service, at);
        health(context, service, at);
        neighbours(context, name, service, at);
        limits(context, service, at);
    }
}

fn naming(context: &mut Context<'_, '_>, name: &str, at: At<'_>) {
    if name == GATEWAY {
        context.add(BAD_NAME, at.key(), || {
            (format!("no service can be called `{GATEWAY}`: that is the caller of every route"), "choose another name")
        });
    } else if !context.topology.channels.is_empty() && [BROKER, COURIER, DAEMON].contains(&name) {
        context.add(BAD_NAME, at.key(), || {
            (
                format!("no service can be called `{name}` where there are channels: meshctl has one"),
                "choose another name",
            )
        });
    } else if !syntax::is_label(name) {
        let shown = context.quoted(name);
        context.add(BAD_NAME, at.key(), || {
            (
                format!("{shown} is not a name for a service"),
                "use lower-case letters, digits and hyphens, with a letter or digit at both ends, 63 at most",
            )
        });
    }
}

fn program(context: &mut Context<'_, '_>, name: &str, service: &Service, at: At<'_>) {
    let said: Vec<&str> = ["builtin", "command", "image"].into_iter().filter(|key| at.has(key)).collect();
    match *said {
        [] if at.incomplete() => {}
        [] => {
            let shown = context.quoted(name);
            context.add(NO_PROGRAM, at.key(), || {
                (
                    format!("the service {shown} does not say what to run"),
                    "add `command: [\"program\", \"argument\"]`, or `builtin: hello`",
                )
            });
        }
        [_] => {}
        [first, second, ..] => context.add(SEVERAL_PROGRAMS, at.get(second).key(), || {
            (format!("`{first}` and `{second}` both say what to run"), "keep one of them")
        }),
    }
    if service.image.is_some() {
        context.add(NOT_YET, at.get("image").key(), || {
            (
                "`image` needs a docker or kubernetes runtime, which this version does not have",
                "use `command:` or `builtin:`",
            )
        });
    }
    if let Some(builtin) = service.builtin.as_deref().filter(|builtin| !BUILTINS.contains(builtin)) {
        let shown = context.quoted(builtin);
        context.add(UNKNOWN_BUILTIN, at.get("builtin").place(), || {
            let help = match nearest(builtin, BUILTINS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("use {}, or run a program of your own with `command:`", one_of(BUILTINS)),
            };
            (format!("meshctl comes with no service {shown}"), help)
        });
    }
    if let Some(command) = &service.command {
        empty_command(context, command, at.get("command"), "command");
        let wants_port = command.iter().position(|argument| argument.contains("{{port}}"));
        if let Some(index) = wants_port.filter(|_| !service.listens()) {
            context.add(NO_PORT, at.get("command").nth(index).place(), || {
                (
                    "the command wants `{{port}}`, and the service has `port: none`",
                    "give the service a port: leave `port:` out, or write a number",
                )
            });
        }
    }
}

fn empty_command(context: &mut Context<'_, '_>, command: &[String], at: At<'_>, key: &str) {
    if command.first().is_none_or(|program| program.trim().is_empty()) && !at.incomplete() {
        context.add(EMPTY_COMMAND, at.place(), || {
            (format!("`{key}` names no program"), format!("write `{key}: [\"program\", \"argument\"]`"))
        });
    }
}

fn environment(context: &mut Context<'_, '_>, name: &str, service: &Service, at: At<'_>) {
    let env = at.get("env");
    for variable in service.env.keys() {
        if !syntax::is_env_name(variable) {
            let shown = context.quoted(variable);
            context.add(BAD_ENV_NAME, env.get(variable).key(), || {
                (
                    format!("{shown} is not a name for an environment variable"),
                    "use letters, digits and underscores, and no digit at the front",
                )
            });
        } else if variable == "PORT"
            && service.fixed_port().is_none()
            && service.listens()
            && !at.get("port").incomplete()
        {
            context.add(RESERVED_ENV, env.get(variable).key(), || {
                (
                    "`PORT` is set by meshctl, because the port of this service is automatic",
                    "leave it out, or give the service a fixed `port:`",
                )
            });
        }
    }
    for (variable, callee) in asked_for(service) {
        let place = || env.get(variable).get("urlOf").place();
        called(context, name, callee, place, &format!("`{variable}` wants the address of"));
    }
}

/// `callee` is called by `name`, as `place` says; looking that up is what costs in a service with thousands of calls.
fn called(context: &mut Context<'_, '_>, name: &str, callee: &str, place: impl Fn() -> Place, what: &str) {
    let fine = |service: &Service| callee != name && service.listens();
    if context.topology.services.get(callee).is_some_and(fine) {
        return;
    }
    let place = place();
    let Some(_) = context.service(callee, place, what) else { return };
    if callee == name {
        let shown = context.quoted(name);
        context.add(SELF_CALL, place, || {
            (
                format!("the service {shown} calls itself"),
                "let its program do so without the mesh, or name another service",
            )
        });
    } else {
        no_port(context, callee, place, what);
    }
}

pub(super) fn no_port(context: &mut Context<'_, '_>, callee: &str, place: Place, what: &str) {
    let shown = context.quoted(callee);
    context.add(NO_PORT, place, || {
        (
            format!("{what} {shown}, which has `port: none`"),
            "give that service a port: leave `port:` out, or write a number",
        )
    });
}

fn health(context: &mut Context<'_, '_>, service: &Service, at: At<'_>) {
    let (health, at) = (&service.health, at.get("health"));
    let kinds: Vec<&str> = ["http", "tcp", "exec"].into_iter().filter(|key| at.has(key)).collect();
    if let [first, second, ..] = *kinds {
        context.add(SEVERAL_CHECKS, at.get(second).key(), || {
            (format!("the health check is both `{first}` and `{second}`"), "keep one of them")
        });
    }
    if let Some(path) = health.http.as_deref()
        && (!path.starts_with('/') || path.chars().any(|c| c.is_whitespace() || c.is_control()))
    {
        let shown = context.quoted(path);
        context.add(BAD_PATH, at.get("http").place(), || {
            (format!("{shown} is not a path"), "write the path only, such as `/healthz`")
        });
    }
    if let Some(command) = &health.exec {
        empty_command(context, command, at.get("exec"), "exec");
    }
    if !service.listens() {
        let wanted = [(health.http.is_some(), "http"), (health.tcp == Some(true), "tcp")];
        for (_, kind) in wanted.iter().filter(|(wants, _)| *wants) {
            context.add(NO_PORT, at.get(kind).key(), || {
                (
                    format!("the health check `{kind}` needs a port, and the service has `port: none`"),
                    "check it with `exec:`, or leave `health:` out: running is healthy enough then",
                )
            });
        }
    }
    context.not_zero(health.interval, at, "interval");
    context.not_zero(health.timeout, at, "timeout");
}

fn neighbours(context: &mut Context<'_, '_>, name: &str, service: &Service, at: At<'_>) {
    for callee in service.calls.keys() {
        called(context, name, callee, || at.get("calls").get(callee).key(), "`calls` names");
    }
    for (index, before) in service.depends_on.iter().enumerate() {
        let place = at.get("dependsOn").nth(index).place();
        let Some(other) = context.service(before, place, "`dependsOn` names") else { continue };
        if other.replicas == Some(0) && before != name {
            let shown = context.quoted(before);
            context.add(NEVER_READY, place, || {
                (
                    format!("this waits for {shown}, which has no instances and so never becomes ready"),
                    "give it `replicas: 1`, or leave it out of `dependsOn`",
                )
            });
        }
    }
}

fn limits(context: &mut Context<'_, '_>, service: &Service, at: At<'_>) {
    context.not_zero(service.start_timeout, at, "startTimeout");
    for (size, part, key) in
        [(service.resources.memory, "resources", "memory"), (service.logs.max_size, "logs", "maxSize")]
    {
        if size == Some(Bytes(0)) {
            context.add(ZERO, at.get(part).get(key).place(), || {
                (format!("`{key}` must be more than zero"), "write a size such as 64MiB, or leave it out")
            });
        }
    }
}
