//! What a follower says, in sentences.

use crate::machine::{Event, Skipped};

/// An event, for the log and the status.
pub(crate) fn sentence(event: &Event) -> String {
    match event {
        Event::RolledBack { to: Some(to) } => {
            format!("the data was rolled back or brought back by tmfs; going on from height {to}")
        }
        Event::RolledBack { to: None } => {
            "the data was rolled back by tmfs; going on from the first height".into()
        }
        Event::WentBack { from, to, newest } => {
            let taken = match newest {
                Some(newest) if newest >= to => {
                    format!("; nothing is taken until it is above the newest snapshot, {newest}")
                }
                _ => String::new(),
            };
            format!("the chain went back from height {from} to {to} without a rollback of tmfs{taken}")
        }
        Event::Doubted { height, basis: Some(basis) } => {
            format!("height {height} is far above {basis}; it counts if the next answer agrees")
        }
        Event::Doubted { height, basis: None } => {
            format!("height {height} is the first one; it counts if the next answer agrees")
        }
        Event::Refused { height, basis, limit } => format!(
            "height {height} is refused: it is more than {limit} above {basis}; if it is right, mount with \
             --accept-jumps, or take a snapshot of it with `tmfs snapshot`"
        ),
        Event::Jumped { height, basis } => format!("the height jumped from {basis} to {height}; accepted"),
        Event::Stale { height, newest } => {
            let now = newest.map_or("before the first snapshot".to_owned(), |newest| format!("at {newest}"));
            format!(
                "height {height} is what was told before the data was rolled back; it is {now} now; waiting for the \
                 node to be started again"
            )
        }
        Event::NoBlock => "the node knows no block yet".into(),
        Event::Reorganised { height, was, is } => format!(
            "the chain was reorganised: block {height}, of which there is a snapshot, was {was} and is {is} now"
        ),
    }
}

/// Heights that were skipped, by name as long as there are few.
pub(crate) fn skipped(skipped: &Skipped, interval: u64) -> String {
    if skipped.count <= 10 {
        let heights = (0..skipped.count).map(|at| (skipped.first + at * interval).to_string());
        return heights.collect::<Vec<_>>().join(" ");
    }
    format!("{} to {} ({} heights)", skipped.first, skipped.last, skipped.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_by_name_and_many_as_a_range() {
        assert_eq!(skipped(&Skipped { first: 10, last: 30, count: 3 }, 10), "10 20 30");
        assert_eq!(skipped(&Skipped { first: 10, last: 110, count: 11 }, 10), "10 to 110 (11 heights)");
        assert_eq!(
            skipped(&Skipped { first: u64::MAX - 1, last: u64::MAX - 1, count: 1 }, u64::MAX),
            "18446744073709551614"
        );
    }

    #[test]
    fn sentences() {
        let back = Event::WentBack { from: 9, to: 5, newest: Some(4) };
        assert_eq!(sentence(&back), "the chain went back from height 9 to 5 without a rollback of tmfs");
        let back = Event::WentBack { from: 9, to: 5, newest: Some(7) };
        assert!(sentence(&back).ends_with("until it is above the newest snapshot, 7"));
    }
}
