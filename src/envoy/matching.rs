//! Match trees (xDS's generic matching): small parts that routes are chosen by.

use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::FilterStateInput;
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, PredicateList, SinglePredicate, single_predicate::Matcher as ValueMatcher,
};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Outcome;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherList, MatcherType, OnMatch};
use envoy_types::pb::xds::r#type::matcher::v3::{Matcher, StringMatcher, string_matcher::MatchPattern};
use envoy_types::util::pack_any;
use prost::{Message, Name};

/// A route, or a list of routes, for what is matched.
pub(super) fn take<T: Message + Name>(name: &str, what: T) -> OnMatch {
    OnMatch { on_match: Some(Outcome::Action(input(name, what))), ..Default::default() }
}

/// The first of these that fits, or what is for all others.
pub(super) fn first_of(matchers: Vec<FieldMatcher>, other: OnMatch) -> Matcher {
    Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers })),
        on_no_match: Some(Box::new(other)),
    }
}

/// The value of a request's header.
pub(super) fn header_input(name: &str) -> TypedExtensionConfig {
    input(name, HttpRequestHeaderMatchInput { header_name: name.to_owned() })
}

/// The filter state of the request, or of its connection, has exactly this value. (Of Envoy's environment, which would be
/// simpler, 1.40.0 finds that nothing fits; 1.36.4 does not.)
pub(super) fn filter_state(key: &str, value: String) -> Predicate {
    let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact(value)), ..Default::default() };
    Predicate {
        match_type: Some(MatchType::SinglePredicate(SinglePredicate {
            input: Some(input(key, FilterStateInput { key: key.to_owned(), ..Default::default() })),
            matcher: Some(ValueMatcher::ValueMatch(exact)),
        })),
    }
}

/// Any of these, of which there is at least one.
pub(super) fn any_of(mut predicate: Vec<Predicate>) -> Predicate {
    match predicate.len() {
        1 => predicate.remove(0),
        _ => Predicate { match_type: Some(MatchType::OrMatcher(PredicateList { predicate })) },
    }
}

fn input<T: Message + Name>(name: &str, config: T) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack_any(config)) }
}
