//! "Did you mean": the word that was probably meant.

/// Words compared for one suggestion, so that a thousand typos in a system of thousands are still answered at once.
const COMPARED: usize = 200;

/// The candidate nearest to `word`, if it is near enough to be a slip of the finger.
pub(crate) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let bytes = word.len();
    let word = plain(word);
    let length = word.chars().count();
    if !(2..=64).contains(&length) {
        return None;
    }
    let limit = (length / 3).clamp(1, 3);
    candidates
        .into_iter()
        // Hyphens and underscores do not count, and there are few of them.
        .filter(|candidate| candidate.len().abs_diff(bytes) <= limit + 4)
        .map(|candidate| (plain(candidate), candidate))
        .take(COMPARED)
        .filter(|(folded, _)| folded.chars().count().abs_diff(length) <= limit)
        .map(|(folded, candidate)| (strsim::osa_distance(&word, &folded), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The candidate that is `word` but for case, hyphens and underscores.
pub(crate) fn respelled<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = plain(word);
    candidates.into_iter().find(|candidate| plain(candidate) == word)
}

fn plain(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_')).take(200).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_seen_and_strangers_are_not() {
        let keys = ["replicas", "port", "dependsOn", "env"];
        for (typo, meant) in [
            ("replica", Some("replicas")),
            ("repilcas", Some("replicas")),
            ("depends_on", Some("dependsOn")),
            ("Port", Some("port")),
            ("envv", Some("env")),
            ("banana", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typo, keys), meant, "{typo}");
        }
        assert_eq!(respelled("depends-on", keys), Some("dependsOn"));
    }
}
