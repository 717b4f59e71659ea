//! Whether this replica's clock agrees with the API server's, which dates its answers.
//!
//! ```text
//!  now ─▶ request ─▶ answer, `Date` ─▶ now     a date outside of the two is the clock's, not the answer's slowness
//! ```
//!
//! Certificates are dated by this clock and judged by those of sidecars, of webhooks and of the API server. Differences of a few
//! minutes are harmless ([`CLOCK_TOLERANCE`]); they are told before they are not.

use std::time::{Duration, SystemTime};

use kube::client::Body;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::sleep;

use super::{Cluster, Report, send};
use crate::backoff::about;
use crate::ca::{CLOCK_TOLERANCE, Clock};
use crate::mesh::Diagnostic;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(20);
/// What is not worth telling.
const HARMLESS: Duration = Duration::from_mins(1);
/// A date is told in whole seconds.
const GRAIN: Duration = Duration::from_secs(1);
/// What whoever is authenticated may ask for; a refusal is dated as well.
const PATH: &str = "/version";

/// Reports how far the clocks are apart, until the future is dropped.
pub async fn watch(cluster: &Cluster, clock: &Clock, report: &dyn Report) {
    loop {
        // Without an answer nothing is known of the API server's clock, and others say that there is none.
        if let Some(skew) = look(cluster, clock).await {
            report.report("clock", skew.and_then(Skew::diagnostic));
        }
        sleep(about(LOOK)).await;
    }
}

async fn look(cluster: &Cluster, clock: &Clock) -> Option<Option<Skew>> {
    let request = http::Request::get(PATH).body(Body::empty()).ok()?;
    let before = clock.now();
    let answer = send("get", cluster.client().send(request)).await.ok()?;
    let after = clock.now();
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
    // RFC 9110, 5.6.7: a date of RFC 5322, whose zone is written GMT.
    let date = OffsetDateTime::parse(date, &Rfc2822).ok()?;
    Some(Skew::between(before, date.into(), after))
}

/// How far this clock is from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Skew {
    Ahead(Duration),
    Behind(Duration),
}

impl Skew {
    /// What a date tells that was made between two moments of this clock; `None`: they agree.
    fn between(before: SystemTime, date: SystemTime, after: SystemTime) -> Option<Self> {
        let over = |later: SystemTime, earlier| later.duration_since(earlier).ok().filter(|by| !by.is_zero());
        let ahead = over(before, date + GRAIN).map(Self::Ahead);
        ahead.or_else(|| over(date, after).map(Self::Behind))
    }

    fn diagnostic(self) -> Option<Diagnostic> {
        let (by, way) = match self {
            Self::Ahead(by) => (by, "ahead of"),
            Self::Behind(by) => (by, "behind"),
        };
        let tolerated = CLOCK_TOLERANCE.as_secs() / 60;
        // In minutes: what differs by the second would be said again and again.
        let minutes = (by.as_secs() + 30) / 60;
        let said = format!("the clock of this replica is {minutes} min {way} the API server's");
        let help = "set the clocks of the nodes by NTP; certificates are then made anew where that is needed";
        match by {
            by if by <= HARMLESS => None,
            by if by <= CLOCK_TOLERANCE => Some(Diagnostic::warning(
                "",
                format!(
                    "{said}; certificates are believed as long as no two clocks are more than {tolerated} min apart"
                ),
                help,
            )),
            _ => Some(Diagnostic::error(
                "",
                format!(
                    "{said}, more than the {tolerated} min that are harmless: who goes by another clock may not believe the certificates that this replica makes"
                ),
                help,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::test_clock::epoch;
    use crate::mesh::diagnostic::Severity;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_that_takes_long_is_no_skew() {
        for date in [0, 1, 7, 11] {
            let seen = Skew::between(epoch(), epoch() + SECOND * date, epoch() + SECOND * 12);
            assert_eq!(seen, None, "{date}");
        }
        assert_eq!(Skew::between(epoch(), epoch() - SECOND, epoch()), None, "a date has whole seconds");
    }

    #[test]
    fn a_date_outside_of_question_and_answer_is_the_clocks() {
        let hour = Duration::from_hours(1);
        let seen = |date| Skew::between(epoch(), date, epoch() + SECOND);
        assert_eq!(seen(epoch() - hour), Some(Skew::Ahead(hour - GRAIN)));
        assert_eq!(seen(epoch() + hour), Some(Skew::Behind(hour - SECOND)));
    }

    #[test]
    fn minutes_are_a_warning_and_what_is_not_tolerated_an_error() {
        let said = |by: u64| Skew::Ahead(SECOND * u32::try_from(by).unwrap()).diagnostic();
        assert_eq!(said(30), None);
        let warning = said(300).unwrap();
        assert!(
            warning.severity == Severity::Warning && warning.reason.contains("5 min ahead of the API"),
            "{warning:?}"
        );
        let error = Skew::Behind(SECOND * 3_600).diagnostic().unwrap();
        assert!(
            error.severity == Severity::Error && error.reason.contains("60 min behind the API server's"),
            "{error:?}"
        );
    }

    #[test]
    fn the_dates_of_http_are_read() {
        let date = OffsetDateTime::parse("Thu, 01 Jan 2026 00:00:00 GMT", &Rfc2822).unwrap();
        assert_eq!(SystemTime::from(date), epoch());
    }
}
