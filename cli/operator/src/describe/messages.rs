//! Pages of channels, and what pages of services say of them.

use meshctl_api::view::messages::Channel;
use meshctl_model::units::Span;

use super::page::Page;
use super::{Facts, endings};
use crate::output::{Cell, Format};
use crate::show::{self, dead, rate, size};

/// The channels that a service publishes to.
pub(super) fn published_by(page: &mut Page, facts: &Facts, service: &str) {
    let own = facts.channels.iter().filter(|channel| channel.publishers.iter().any(|publisher| publisher == service));
    let rows = own.map(|channel| {
        vec![
            Cell::plain(&channel.name),
            Cell::plain(rate(channel.published_per_s)),
            Cell::plain(channel.depth),
            Cell::plain(channel.lag),
            dead(channel.dead_letters),
        ]
    });
    page.table("Publishes to", &["channel", "in/s", "depth", "lag", "dead"], rows.collect());
}

/// The subscriptions whose messages a service gets.
pub(super) fn subscribed_by(page: &mut Page, facts: &Facts, service: &str) {
    let mut own = facts.channels.clone();
    own.iter_mut().for_each(|channel| channel.subscriptions.retain(|subscription| subscription.service == service));
    subscriptions(page, "Subscribes to", own);
}

fn subscriptions(page: &mut Page, heading: &str, channels: Vec<Channel>) {
    if channels.iter().any(|channel| !channel.subscriptions.is_empty()) {
        page.section(heading, show::subscriptions(channels).table(&Format::Table, true).draw(None));
    }
}

pub(super) fn channel(facts: &Facts, name: &str) -> Option<Page> {
    let channel = facts.channels.iter().find(|channel| channel.name == name)?;
    let mut page = Page::new(format!("channel/{name}"));
    page.field("Published", format_args!("{}/s, {} accepted so far", rate(channel.published_per_s), channel.accepted));
    page.field("Delivered", format_args!("{}/s", rate(channel.delivered_per_s)));
    page.field(
        "Waiting",
        format_args!("{} lag, {} in flight, depth {}", channel.lag, channel.in_flight, channel.depth),
    );
    page.field("Dead letters", channel.dead_letters);
    page.field(
        "Kept",
        format_args!("{} messages, {} of {}", channel.kept, size(channel.kept_bytes), size(channel.max_size_bytes)),
    );
    page.field("Retention", Span::from_millis(channel.retention_ms));
    page.field("Partitions", format_args!("{}, ordered: {}", channel.partitions, channel.ordered));
    let publishers = if channel.publishers.is_empty() { "nobody".to_owned() } else { channel.publishers.join(", ") };
    page.field("Published by", publishers);
    subscriptions(&mut page, "Subscriptions", vec![channel.clone()]);
    if channel.dead_letters > 0 {
        let next = format!("meshctl dlq ls --where 'channel = {name}' --group-by fingerprint\n");
        page.section("Dead letters", next);
    }
    let (own, of_it) = (format!("channel/{name}"), format!("/{name}/"));
    endings(&mut page, facts, facts.events(|subject| subject == own || subject.contains(&of_it)), &[]);
    Some(page)
}
