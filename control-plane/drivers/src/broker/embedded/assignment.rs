//! Which member of a group gets which partitions: as even as can be, and only what must move moves. Pure.

/// Who should have each partition. `current` is who has it, or is to get it, now; `members` are those who want any.
/// Shares differ by one at most; a member keeps what it has up to its share.
pub fn assign(current: &[Option<u64>], members: &[u64]) -> Vec<Option<u64>> {
    if members.is_empty() {
        return vec![None; current.len()];
    }
    let (share, mut larger) = (current.len() / members.len(), current.len() % members.len());
    // Those who have most already get the larger shares, so that fewer partitions move.
    let mut shares: Vec<(u64, usize)> = members
        .iter()
        .map(|member| (*member, current.iter().filter(|owner| **owner == Some(*member)).count()))
        .collect();
    shares.sort_by_key(|(member, has)| (std::cmp::Reverse(*has), *member));
    for (_, share_of) in &mut shares {
        *share_of = share + usize::from(larger > 0);
        larger = larger.saturating_sub(1);
    }
    let mut wanted: Vec<Option<u64>> = current
        .iter()
        .map(|owner| {
            let (member, left) = shares.iter_mut().find(|(member, _)| Some(*member) == *owner)?;
            *left = left.checked_sub(1)?;
            Some(*member)
        })
        .collect();
    for partition in wanted.iter_mut().filter(|owner| owner.is_none()) {
        if let Some((member, left)) = shares.iter_mut().find(|(_, left)| *left > 0) {
            *left -= 1;
            *partition = Some(*member);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(owners: &[Option<u64>], member: u64) -> usize {
        owners.iter().filter(|owner| **owner == Some(member)).count()
    }

    proptest! {
        #[test]
        fn it_is_even_complete_and_moves_little(
            current in proptest::collection::vec(proptest::option::of(0..6u64), 0..20), members in proptest::collection::btree_set(0..8u64, 0..6),
        ) {
            let members: Vec<u64> = members.into_iter().collect();
            let wanted = assign(&current, &members);
            prop_assert_eq!(wanted.len(), current.len());
            if members.is_empty() {
                prop_assert!(wanted.iter().all(Option::is_none));
                return Ok(());
            }
            prop_assert!(wanted.iter().all(|owner| owner.is_some_and(|owner| members.contains(&owner))));
            let counts: Vec<usize> = members.iter().map(|member| count(&wanted, *member)).collect();
            let (least, most) = (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
            prop_assert!(most - least <= 1, "{:?}", wanted);
            // Nobody who has no more than the smaller share loses anything, and nobody who gets something loses something.
            for member in &members {
                let had = count(&current, *member);
                let kept = (0..current.len()).filter(|at| current[*at] == Some(*member) && wanted[*at] == Some(*member)).count();
                prop_assert!(kept == had || kept == count(&wanted, *member), "{:?} {:?}", current, wanted);
                prop_assert!(had > least || kept == had);
            }
            prop_assert_eq!(&assign(&wanted, &members), &wanted, "what is even stays");
        }
    }
}
