//! The difference of two JSON values as a JSON Patch (RFC 6902): what the API server is answered.

use serde::Serialize;
use serde_json::Value;

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    /// The value is put there: a field, or before the element of an array that has this index.
    Add {
        /// A JSON Pointer (RFC 6901).
        path: String,
        /// What.
        value: Value,
    },
    /// What is there is taken away.
    Remove {
        /// A JSON Pointer.
        path: String,
    },
    /// What is there is replaced.
    Replace {
        /// A JSON Pointer.
        path: String,
        /// By what.
        value: Value,
    },
}

/// The operations that make `after` of `before`; none if they are equal.
pub fn difference(before: &Value, after: &Value) -> Vec<Operation> {
    let mut operations = Vec::new();
    compare(String::new(), before, after, &mut operations);
    operations
}

fn compare(path: String, before: &Value, after: &Value, operations: &mut Vec<Operation>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                let path = format!("{path}/{}", escaped(name));
                match after.get(name) {
                    Some(now) => compare(path, value, now, operations),
                    None => operations.push(Operation::Remove { path }),
                }
            }
            let new = after.iter().filter(|(name, _)| !before.contains_key(*name));
            operations.extend(new.map(|(name, value)| Operation::Add {
                path: format!("{path}/{}", escaped(name)),
                value: value.clone(),
            }));
        }
        (Value::Array(before), Value::Array(after)) => elements(&path, before, after, operations),
        (_, after) => operations.push(Operation::Replace { path, value: after.clone() }),
    }
}

/// Elements that differ between the equal ones at both ends are compared one by one; the rest is added or removed.
fn elements(path: &str, before: &[Value], after: &[Value], operations: &mut Vec<Operation>) {
    // Which element became which is known by name, as Kubernetes knows containers, volumes and ports.
    let same = |a: &Value, b: &Value| match (a.get("name"), b.get("name")) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    let added = after.len().saturating_sub(before.len());
    let first = before.iter().zip(after).take_while(|(a, b)| same(a, b)).count();
    let last = before[first..].iter().rev().zip(after[first..].iter().rev()).take_while(|(a, b)| same(a, b)).count();
    if first + last == before.len() && before.len() <= after.len() {
        let new = after.iter().enumerate().skip(first).take(added);
        operations
            .extend(new.map(|(index, value)| Operation::Add { path: format!("{path}/{index}"), value: value.clone() }));
        for (old, element) in before.iter().enumerate() {
            let new = if old < first { old } else { old + added };
            if let Some(now) = after.get(new) {
                compare(format!("{path}/{new}"), element, now, operations);
            }
        }
        return;
    }
    operations.push(Operation::Replace { path: path.to_owned(), value: after.to_vec().into() });
}

/// RFC 6901, section 3.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Applies operations as RFC 6902 says.
    pub(crate) fn apply(value: &mut Value, operations: &[Operation]) {
        for operation in operations {
            let (path, new) = match operation {
                Operation::Add { path, value } | Operation::Replace { path, value } => (path, Some(value.clone())),
                Operation::Remove { path } => (path, None),
            };
            let Some((parent, last)) = path.rsplit_once('/') else {
                *value = new.expect("the whole is replaced, never removed");
                continue;
            };
            let last = last.replace("~1", "/").replace("~0", "~");
            match (value.pointer_mut(parent).expect(path), operation, new) {
                (Value::Object(fields), Operation::Remove { .. }, _) => drop(fields.shift_remove(&last).expect(path)),
                (Value::Object(fields), _, Some(new)) => drop(fields.insert(last, new)),
                (Value::Array(items), Operation::Add { .. }, Some(new)) => {
                    items.insert(last.parse().expect(path), new);
                }
                (Value::Array(items), _, Some(new)) => items[last.parse::<usize>().expect(path)] = new,
                (other, ..) => panic!("{path}: {other}"),
            }
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3_i32).prop_map(Value::from),
            "[ab/~]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[ab/~]{0,2}|name", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_difference_applied_to_the_first_gives_the_second(before in any_json(), after in any_json()) {
            let mut patched = before.clone();
            apply(&mut patched, &difference(&before, &after));
            prop_assert_eq!(patched, after);
        }

        #[test]
        fn equal_values_differ_by_nothing(value in any_json()) {
            prop_assert_eq!(difference(&value, &value.clone()), []);
        }
    }

    #[test]
    fn what_is_put_before_an_element_leaves_it_alone() {
        let before = json!({"c": [{"name": "app", "image": "a"}], "a/b": {"~": 1}});
        let after = json!({"c": [{"name": "new"}, {"name": "app", "image": "b"}], "a/b": {"~": 2}});
        assert_eq!(
            serde_json::to_value(difference(&before, &after)).expect("JSON"),
            json!([
                {"op": "add", "path": "/c/0", "value": {"name": "new"}},
                {"op": "replace", "path": "/c/1/image", "value": "b"},
                {"op": "replace", "path": "/a~1b/~0", "value": 2},
            ])
        );
    }
}
