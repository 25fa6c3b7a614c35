//! The merge policies: what each chooses, and that no order of inputs and no split of them makes a difference.

use proptest::prelude::*;
use proptest::sample::SizeRange;

use super::*;

/// Key, event time, payload.
type Record = (u32, u32, u32);

const ORDER: [&str; 4] = ["merged", "b", "a", "c"];

fn key(record: &Record) -> u32 {
    record.0
}

fn time(record: &Record) -> u32 {
    record.1
}

/// Source, record: one record in an input of its own is the finest split.
type Input = (&'static str, Record);

fn pieces(inputs: &[Input]) -> impl Iterator<Item = (&'static str, [Record; 1])> {
    inputs.iter().map(|(source, record)| (*source, [*record]))
}

/// The same records as whole inputs, one for each source.
fn whole(inputs: &[Input]) -> BTreeMap<&'static str, Vec<Record>> {
    let mut whole: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (source, record) in inputs {
        whole.entry(*source).or_default().push(*record);
    }
    whole
}

/// Every policy on the same inputs. Few keys and times, so that they meet often.
fn all_policies<I: IntoIterator<Item = Record>>(
    inputs: impl Iterator<Item = (&'static str, I)>,
) -> [Result<Vec<Record>, MergeError>; 3] {
    let inputs: Vec<(&str, Vec<Record>)> =
        inputs.map(|(source, records)| (source, records.into_iter().collect())).collect();
    [
        union_by_key(inputs.clone(), key),
        priority_by_source(&ORDER, inputs.clone(), key),
        latest_by_event_time(&ORDER, inputs, key, time),
    ]
}

fn inputs(size: impl Into<SizeRange>, payloads: u32) -> impl Strategy<Value = Vec<Input>> {
    let input = (prop::sample::select(&ORDER[1..]), (0..5_u32, 0..3_u32, 0..payloads));
    prop::collection::vec(input, size)
}

/// Inputs in which a key has one record, whatever the source: those of which there is a union.
fn agreeing() -> impl Strategy<Value = Vec<Input>> {
    inputs(0..40, 1).prop_map(|inputs| inputs.into_iter().map(|(source, (key, ..))| (source, (key, 7, 7))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_and_no_split_of_the_inputs_makes_a_difference(
        (before, after) in inputs(0..20, 2).prop_flat_map(|inputs| (Just(inputs.clone()), Just(inputs).prop_shuffle()))
    ) {
        let expected = all_policies(whole(&before).into_iter());
        prop_assert_eq!(&all_policies(pieces(&before)), &expected);
        prop_assert_eq!(&all_policies(pieces(&after)), &expected);
        prop_assert_eq!(&all_policies(whole(&after).into_iter().rev()), &expected);
    }

    #[test]
    fn a_union_merged_with_its_inputs_again_is_the_same_union(inputs in agreeing()) {
        let once = union_by_key(whole(&inputs), key).unwrap();
        for input in whole(&inputs) {
            prop_assert_eq!(&union_by_key([("merged", once.clone()), input], key).unwrap(), &once);
        }
        let keys: BTreeSet<u32> = inputs.iter().map(|(_, record)| record.0).collect();
        prop_assert_eq!(once.iter().map(key).collect::<Vec<_>>(), Vec::from_iter(keys), "each key once, in order");
    }

    #[test]
    fn the_latest_merged_with_their_inputs_again_are_the_same(inputs in inputs(0..40, 3)) {
        let once = latest_by_event_time(&ORDER, whole(&inputs), key, time).unwrap();
        for input in whole(&inputs) {
            let again = latest_by_event_time(&ORDER, [("merged", once.clone()), input], key, time).unwrap();
            prop_assert_eq!(&again, &once);
        }
    }

    #[test]
    fn a_policy_gives_each_key_once_and_only_records_that_came(inputs in inputs(0..40, 3)) {
        for merged in all_policies(pieces(&inputs)).into_iter().flatten() {
            let keys: BTreeSet<u32> = inputs.iter().map(|(_, record)| record.0).collect();
            prop_assert_eq!(merged.iter().map(key).collect::<Vec<_>>(), Vec::from_iter(keys));
            prop_assert!(merged.iter().all(|record| inputs.iter().any(|(_, other)| other == record)));
        }
    }
}

#[test]
fn a_union_takes_equal_records_once_and_refuses_different_ones() {
    let inputs = [("b", vec![(2, 0, 0), (1, 0, 0)]), ("a", vec![(2, 0, 0)])];
    assert_eq!(union_by_key(inputs, key).unwrap(), [(1, 0, 0), (2, 0, 0)]);

    let inputs = [("c", vec![(9, 0, 1), (3, 0, 1)]), ("a", vec![(9, 0, 2), (3, 0, 2)]), ("b", vec![(1, 0, 0)])];
    let error = union_by_key(inputs, key).unwrap_err();
    assert_eq!(error, MergeError::Conflict { key: "3".to_owned(), sources: vec!["a".to_owned(), "c".to_owned()] });
    assert!(error.to_string().contains("key 3 has different records in a, c"), "{error}");
}

#[test]
fn the_first_source_that_has_a_key_gives_its_record() {
    let inputs = [("a", vec![(1, 9, 1), (2, 9, 1)]), ("b", vec![(1, 0, 2)]), ("c", vec![(3, 0, 3), (2, 0, 3)])];
    let merged = priority_by_source(&ORDER, inputs, key).unwrap();
    assert_eq!(merged, [(1, 0, 2), (2, 9, 1), (3, 0, 3)]);
}

#[test]
fn a_source_that_contradicts_itself_is_refused_only_where_it_counts() {
    let contradiction = ("a", vec![(1, 0, 0), (1, 0, 1)]);
    let outranked = [contradiction.clone(), ("b", vec![(1, 0, 5)])];
    assert_eq!(priority_by_source(&ORDER, outranked, key).unwrap(), [(1, 0, 5)]);
    let error = priority_by_source(&ORDER, [contradiction, ("c", vec![(1, 0, 5)])], key).unwrap_err();
    assert_eq!(error, MergeError::Conflict { key: "1".to_owned(), sources: vec!["a".to_owned()] });
}

#[test]
fn the_latest_wins_then_the_first_source_then_the_greatest_record() {
    let latest = |inputs: [Input; 3]| latest_by_event_time(&ORDER, pieces(&inputs), key, time).unwrap();
    assert_eq!(latest([("b", (1, 1, 9)), ("c", (1, 2, 0)), ("a", (1, 1, 9))]), [(1, 2, 0)]);
    assert_eq!(latest([("c", (1, 2, 9)), ("a", (1, 2, 0)), ("b", (1, 1, 9))]), [(1, 2, 0)]);
    assert_eq!(latest([("a", (1, 2, 3)), ("a", (1, 2, 4)), ("c", (1, 2, 9))]), [(1, 2, 4)]);
}

#[test]
fn a_source_without_a_rank_is_named() {
    let inputs = [("z", vec![]), ("a", vec![]), ("y", vec![(1, 0, 0)])];
    let by_priority = priority_by_source(&["a", "b"], inputs.clone(), key).unwrap_err();
    assert_eq!(by_priority.to_string(), "source 'y' is not in the order of priority (a, b): add it");
    assert_eq!(latest_by_event_time(&["a", "b"], inputs, key, time).unwrap_err(), by_priority);
}

#[test]
fn a_digest_tells_series_of_records_apart() {
    assert_eq!(digest(["ab", "c"]), digest(vec![b"ab".to_vec(), b"c".to_vec()]));
    let others = [digest(["a", "bc"]), digest(["abc"]), digest(["c", "ab"]), digest(["ab", "c", ""]), digest([""; 0])];
    assert!(!others.contains(&digest(["ab", "c"])));
    let by_hand = [&2_u64.to_le_bytes()[..], b"ab", &1_u64.to_le_bytes(), b"c"].concat();
    assert_eq!(digest(["ab", "c"]), *blake3::hash(&by_hand).as_bytes());
}
