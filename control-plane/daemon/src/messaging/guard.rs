//! No change loses messages by accident: what it takes away is counted first, and is refused unless it is empty or the operator
//! says so.

use std::collections::BTreeMap;

use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::{Plan, PlanStep};
use meshctl_drivers::broker::ChannelState;
use meshctl_model::delivery::{Behind, Channel};
use meshctl_model::plan::Loss;

use super::ledger::AllCounts;
use super::{Messaging, declare};

/// What a change would lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub loss: Loss,
    /// Not settled.
    pub messages: u64,
    /// Kept by the store: dead, parked, and on their way back.
    pub dead_letters: u64,
}

/// Those of `losses` that there is something to lose by.
pub fn lost(losses: &[Loss], states: &[ChannelState], counts: &AllCounts) -> Vec<Lost> {
    let weighed = losses.iter().map(|loss| {
        let whole = loss.subscription.is_none();
        let group_is_held = |channel: &str, group: &str| {
            let held = loss.held.iter().any(|held| held.channel == channel && held.group == group);
            // A channel that is made anew is made anew with everything behind it.
            held || whole && Behind::parse(channel).map_or(channel, |(of, ..)| of) == loss.channel
        };
        let groups = states.iter().flat_map(|state| state.groups.iter().map(move |group| (&*state.name, group)));
        let held = groups.filter(|(channel, group)| group_is_held(channel, &group.name));
        let letters = counts.iter().filter(|((channel, subscription), _)| {
            *channel == loss.channel
                && (whole || group_is_held(&Behind::Dead.channel(channel, subscription), Behind::Dead.group()))
        });
        Lost {
            messages: held.map(|(_, group)| group.unsettled).sum(),
            dead_letters: letters.map(|(_, counts)| counts.dead + counts.parked + counts.replaying).sum(),
            loss: loss.clone(),
        }
    });
    weighed.filter(|lost| lost.messages > 0 || lost.dead_letters > 0).collect()
}

impl Lost {
    /// `12 messages that are not settled and 3 dead letters`
    fn counted(&self) -> String {
        let count = |count: u64, one: &str, many: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        };
        let messages = count(self.messages, "message that is not settled", "messages that are not settled");
        let letters = count(self.dead_letters, "dead letter", "dead letters");
        messages.into_iter().chain(letters).collect::<Vec<_>>().join(" and ")
    }
}

impl Messaging {
    /// # Errors
    /// When the broker or the store cannot be asked, which is no permission.
    pub async fn lost(&self, losses: &[Loss]) -> Result<Vec<Lost>, ApiError> {
        if losses.is_empty() {
            return Ok(Vec::new());
        }
        let (states, counts) = self.seen().await.map_err(|why| {
            let message = format!("cannot find out whether messages would be lost: {}", why.message);
            ApiError::new(why.code, message)
                .hint("see that the broker runs (`meshctl status`), or `meshctl apply FILE --discard-messages`")
        })?;
        Ok(lost(losses, &states, &counts))
    }
}

/// Dead letters of former revisions, by channel and subscription: those that are not among `channels`, nor taken away by
/// `losses`. So after `down`, or a revision without channels, when no broker runs that could be asked for the rest.
fn strays(channels: &BTreeMap<String, Channel>, losses: &[Loss], counts: &AllCounts) -> Vec<Lost> {
    let is_wanted = |channel: &String, subscription: &String| {
        let wanted = channels.get(channel).is_some_and(|channel| channel.subscriptions.contains_key(subscription));
        let of = |loss: &Loss| loss.subscription.as_ref().is_none_or(|of| of == subscription);
        wanted || losses.iter().any(|loss| loss.channel == *channel && of(loss))
    };
    let strays = counts.iter().filter(|((channel, subscription), _)| !is_wanted(channel, subscription));
    let weighed = strays.map(|((channel, subscription), counts)| {
        let what = format!("subscription {subscription} of channel {channel} is of a former revision");
        let (channel, subscription) = (channel.clone(), Some(subscription.clone()));
        let loss = Loss { what, channel, subscription, held: Vec::new() };
        Lost { loss, messages: 0, dead_letters: counts.dead + counts.parked + counts.replaying }
    });
    weighed.filter(|lost| lost.dead_letters > 0).collect()
}

impl Messaging {
    /// What the store has of subscriptions that are neither wanted now nor would be.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn kept(&self, channels: &BTreeMap<String, Channel>, losses: &[Loss]) -> Result<Vec<Lost>, ApiError> {
        Ok(strays(channels, losses, &self.letters.counts().await?))
    }
}

/// Says in the plan what becomes of that; `none`: there would be no channels.
pub fn explain_kept(plan: &mut Plan, kept: Vec<Lost>, none: bool, discard: bool) {
    for lost in kept {
        let held = lost.counted();
        let consequence = match (none, discard) {
            (_, true) => format!("{held} are discarded, with every message that the broker has of it"),
            (true, false) => format!("{held} are kept, with every message that the broker has of it"),
            (false, false) => format!("the revision fails unless --discard-messages: it holds {held}"),
        };
        plan.steps.push(PlanStep {
            action: if none && !discard { "keep" } else { "remove" }.into(),
            kind: "subscription".into(),
            name: format!("{}/{}", lost.loss.channel, lost.loss.subscription.unwrap_or_default()),
            why: "it is of a former revision".into(),
            consequence,
        });
        if !none || discard {
            plan.changes += 1;
        }
    }
}

/// The words in which a change is refused.
pub fn refusal(lost: &[Lost]) -> Option<ApiError> {
    let first = lost.first()?;
    let each: Vec<String> =
        lost.iter().map(|lost| format!("{}: it holds {}", lost.loss.what, lost.counted())).collect();
    let message = format!("nothing was changed, since messages would be lost: {}", each.join("; "));
    let way = match (first.messages, first.dead_letters) {
        (0, _) => "replay or discard the dead letters (`meshctl dlq ls`)".to_owned(),
        _ => format!("wait until it is drained (`meshctl channel describe {}`)", first.loss.channel),
    };
    let hint = format!("{way}, or give them up: `meshctl apply FILE --discard-messages`");
    Some(ApiError::new(ErrorCode::Conflict, message).hint(hint))
}

/// Says in the plan what would be lost, or that nobody knows.
pub fn explain(plan: &mut Plan, losses: &[Loss], outcome: &Result<Vec<Lost>, ApiError>, discard: bool) {
    for loss in losses {
        let (kind, name) = match &loss.subscription {
            None => ("channel", loss.channel.clone()),
            Some(subscription) => ("subscription", format!("{}/{subscription}", loss.channel)),
        };
        let Some(step) = plan.steps.iter_mut().find(|step| step.kind == kind && step.name == name) else { continue };
        step.consequence = match outcome {
            Err(why) => format!("{}; {}", step.consequence, why.message),
            Ok(lost) => match (lost.iter().find(|lost| lost.loss == *loss), discard) {
                (Some(lost), true) => format!("{} are discarded", lost.counted()),
                (Some(lost), false) => {
                    format!("refused unless --discard-messages: it holds {}", lost.counted())
                }
                (None, _) => "it holds no messages now; none is lost".to_owned(),
            },
        };
    }
}

/// What keeps a channel from being removed; `None` where nothing is in it.
pub fn holds(state: &ChannelState, counts: &AllCounts) -> Option<String> {
    let letters = match Behind::parse(&state.name) {
        Some((channel, subscription, Behind::Dead)) => {
            let counts = counts.get(&(channel.to_owned(), subscription.to_owned())).copied().unwrap_or_default();
            counts.dead + counts.parked + counts.replaying
        }
        _ => 0,
    };
    let loss = Loss { what: String::new(), channel: state.name.clone(), subscription: None, held: Vec::new() };
    let lost = Lost { loss, messages: declare::unsettled(state), dead_letters: letters };
    (lost.messages > 0 || letters > 0).then(|| lost.counted())
}

#[cfg(test)]
mod tests {
    use meshctl_drivers::broker::GroupState;
    use meshctl_model::plan::Held;

    use super::*;
    use crate::dead_letters::Counts;

    fn state(name: &str, group: &str, unsettled: u64) -> ChannelState {
        let group = GroupState { name: group.into(), unsettled, ..GroupState::default() };
        ChannelState { name: name.into(), groups: vec![group], ..ChannelState::default() }
    }

    fn held(channel: &str, group: &str) -> Held {
        Held { channel: channel.into(), group: group.into() }
    }

    fn counts(subscription: &str, dead: u64, parked: u64) -> AllCounts {
        [(("c".to_owned(), subscription.to_owned()), Counts { dead, parked, ..Counts::default() })].into()
    }

    #[test]
    fn only_what_is_taken_away_counts() {
        let states = [state("c", "a", 5), state("c/a/retry-2", "courier", 2), state("d", "a", 9)];
        let removed = Loss {
            what: "subscription a of channel c is removed".into(),
            channel: "c".into(),
            subscription: Some("a".into()),
            held: vec![held("c", "a"), held("c/a/retry-2", "courier"), held("c/a/dead", "daemon")],
        };
        let found = lost(std::slice::from_ref(&removed), &states, &counts("a", 2, 1));
        assert_eq!((found[0].messages, found[0].dead_letters), (7, 3));
        let fewer = Loss { held: vec![held("c/a/retry-2", "courier")], ..removed.clone() };
        let found = lost(&[fewer], &states, &counts("a", 2, 1));
        assert_eq!((found[0].messages, found[0].dead_letters), (2, 0), "the dead letters stay");
        assert_eq!(lost(&[removed], &[state("c", "a", 0)], &counts("b", 4, 0)), []);
    }

    #[test]
    fn dead_letters_of_former_revisions_stand_in_the_plan() {
        let counts = counts("a", 2, 1);
        let removed = Loss { what: String::new(), channel: "c".into(), subscription: None, held: Vec::new() };
        assert_eq!(strays(&BTreeMap::new(), &[removed], &counts), [], "the step that removes it says so");
        let kept = strays(&BTreeMap::new(), &[], &counts);
        for (none, discard, changes, words) in [
            (true, false, 0, "3 dead letters are kept"),
            (true, true, 1, "3 dead letters are discarded"),
            (false, false, 1, "the revision fails unless --discard-messages: it holds 3 dead letters"),
        ] {
            let mut plan = Plan {
                api_version: String::new(),
                kind: "Plan".into(),
                fingerprint: String::new(),
                changes: 0,
                steps: Vec::new(),
                base_revision: 0,
                sources: None,
            };
            explain_kept(&mut plan, kept.clone(), none, discard);
            assert_eq!((plan.changes, plan.steps[0].name.as_str()), (changes, "c/a"));
            assert!(plan.steps[0].consequence.starts_with(words), "{:?}", plan.steps);
        }
    }

    #[test]
    fn a_channel_with_fewer_partitions_is_made_anew_with_everything_behind_it() {
        let states = [state("c", "a", 0), state("c/a/retry-1", "courier", 1), state("d/a/retry-1", "courier", 4)];
        let what = "channel c gets 1 partition instead of 4".to_owned();
        let shrunk = Loss { what, channel: "c".into(), subscription: None, held: vec![held("c", "a")] };
        let found = lost(&[shrunk], &states, &counts("a", 0, 0));
        assert_eq!((found[0].messages, found[0].dead_letters), (1, 0));
        let refusal = refusal(&found).expect("a refusal");
        assert_eq!(refusal.code, ErrorCode::Conflict);
        assert_eq!(
            refusal.message,
            "nothing was changed, since messages would be lost: channel c gets 1 partition instead of 4: it holds 1 \
             message that is not settled"
        );
        assert!(refusal.hint.is_some_and(|hint| hint.contains("--discard-messages") && hint.contains("describe c")));
        assert_eq!(super::refusal(&[]), None);
    }
}
