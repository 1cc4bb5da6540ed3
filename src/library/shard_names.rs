//! What the names of weight files say about each other: one file, or all shards of one set.

use std::collections::BTreeMap;

/// Checks the names of a model's weight files before any of them is fetched or read.
///
/// # Errors
/// What is wrong, in words: one file beside shards (the weights would be there twice), shards of two sets, a shard that is
/// missing.
pub(super) fn check<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<(), String> {
    // Of each set, by how many shards it says to have, which are there.
    let mut sets: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (number, count) in names.clone().filter_map(shard) {
        sets.entry(count).or_default().push(number);
    }
    let mut counts = sets.into_iter();
    let Some((count, mut there)) = counts.next() else { return Ok(()) };
    if names.clone().any(|name| name == "model.safetensors") {
        return Err(format!("it has its weights twice: `model.safetensors` and {count} shards"));
    }
    if let Some((other, _)) = counts.next() {
        return Err(format!("it has its weights twice: in {count} and in {other} shards"));
    }
    there.sort_unstable();
    there.dedup();
    // Counted up to the first that is missing, so that a name that claims four thousand million shards costs nothing.
    match (1..=count).zip(there.into_iter().map(Some).chain(std::iter::repeat(None))).find(|(n, it)| *it != Some(*n)) {
        Some((missing, _)) => Err(format!("its `model-{missing:05}-of-{count:05}.safetensors` is missing")),
        None => Ok(()),
    }
}

/// The number and the count in `model-NUMBER-of-COUNT.safetensors`.
fn shard(name: &str) -> Option<(u32, u32)> {
    let (number, count) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number(number) && is_number(count) { Some((number.parse().ok()?, count.parse().ok()?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_whole_and_alone() {
        for (names, expected) in [
            ("", None),
            ("model.safetensors", None),
            ("model.safetensors model-extra.safetensors", None),
            ("model-00001-of-00001.safetensors", None),
            ("model-00002-of-00002.safetensors model-00001-of-00002.safetensors", None),
            ("model-1-of-x.safetensors model-+1-of-+2.safetensors", None),
            (
                "model.safetensors model-00001-of-00002.safetensors model-00002-of-00002.safetensors",
                Some("it has its weights twice: `model.safetensors` and 2 shards"),
            ),
            (
                "model-00001-of-00001.safetensors model-00001-of-00002.safetensors model-00002-of-00002.safetensors",
                Some("it has its weights twice: in 1 and in 2 shards"),
            ),
            ("model-00001-of-00002.safetensors", Some("its `model-00002-of-00002.safetensors` is missing")),
            ("model-00002-of-00002.safetensors", Some("its `model-00001-of-00002.safetensors` is missing")),
            ("model-00003-of-00001.safetensors", Some("its `model-00001-of-00001.safetensors` is missing")),
            ("model-00001-of-4000000000.safetensors", Some("its `model-00002-of-4000000000.safetensors` is missing")),
        ] {
            let found = check(names.split_whitespace());
            assert_eq!(found.err().as_deref(), expected, "{names}");
        }
    }
}
