//! How soon a snapshot follows the one before it: when most of those who keep up have answered that one.
//!
//! Streams that are at the same snapshot are sent the same frames, which are encoded once. If changes come faster than
//! streams answer, each stream would soon be somewhere else, and be sent frames of its own: the more there is to do, the
//! more it would cost. So changes are gathered for as long as the streams take, up to [`LONGEST`]; where they take a few
//! milliseconds, nothing waits. A stream that was behind already is not waited for. Pure: time is passed in.

use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::interest::Slot;

/// How long changes are gathered at most, however many streams have not answered.
pub const LONGEST: Duration = Duration::from_secs(1);
/// So many streams cost little, wherever they are, and are not waited for;
const FEW: u64 = 64;
/// nor is one in so many.
const SHARE: u64 = 10;

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waiting: RoaringBitmap,
    revision: u64,
    /// So many of them may be missing.
    enough: u64,
    until: Option<Instant>,
}

impl Pace {
    /// `revision` goes to `streams`, of which those in `behind` have not answered what came before.
    pub(super) fn published(&mut self, revision: u64, streams: &RoaringBitmap, behind: &RoaringBitmap, now: Instant) {
        let waiting = streams - behind;
        let enough = FEW.max(waiting.len() / SHARE);
        let until = (waiting.len() > enough).then(|| now + LONGEST);
        *self = Self { waiting, revision, enough, until };
    }

    /// A stream has answered everything up to `revision`, or ended; whether that was the one that was waited for.
    pub(super) fn answered(&mut self, slot: Slot, revision: u64) -> bool {
        let counts = self.until.is_some() && revision >= self.revision && self.waiting.remove(slot);
        let over = counts && self.waiting.len() <= self.enough;
        if over {
            self.until = None;
        }
        over
    }

    /// Until when the next snapshot waits, unless [`Pace::answered`] says that it need not.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(range: std::ops::Range<Slot>) -> RoaringBitmap {
        range.collect()
    }

    #[test]
    fn the_next_goes_when_most_have_answered() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.until(), None, "the first goes at once");
        pace.published(7, &streams(0..1_000), &RoaringBitmap::new(), now);
        assert_eq!(pace.until(), Some(now + LONGEST));
        assert!((0..899).all(|slot| !pace.answered(slot, 7)));
        assert!(!pace.answered(5, 7), "an answer counts once");
        assert!(!pace.answered(899, 6), "nor does one to what came before");
        assert!(pace.until().is_some());
        assert!(pace.answered(899, 8));
        assert_eq!(pace.until(), None);
    }

    #[test]
    fn few_are_not_waited_for() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.published(7, &streams(0..64), &RoaringBitmap::new(), now);
        assert_eq!(pace.until(), None);
        pace.published(8, &streams(0..65), &RoaringBitmap::new(), now);
        assert_eq!(pace.until(), Some(now + LONGEST));
        assert!(pace.answered(3, 8), "one of them is enough");
    }

    #[test]
    fn who_was_behind_is_not_waited_for() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.published(7, &streams(0..1_000), &streams(0..300), now);
        assert!(!pace.answered(0, 7));
        assert!((300..929).all(|slot| !pace.answered(slot, 7)));
        assert!(pace.answered(929, 7), "a tenth of the 700 is missing");
        pace.published(8, &streams(0..1_000), &streams(0..950), now);
        assert_eq!(pace.until(), None);
    }
}
