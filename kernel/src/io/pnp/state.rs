//! What may be done to a device when. Pure.
//!
//! ```text
//! Found ── Add ──► Added ── Start ──► Started ── QueryRemove ──► RemovePending ── Remove ──► Found
//!                    │  ▲                │  ▲                       │
//!                    │  └─ failed Start  │  └──── CancelRemove ─────┘
//!                    │                   └── SurpriseRemove ──► Surprised ── Remove ──► Found
//!                    └── Remove ──► Found
//! ```
//!
//! Sources: WDK, "State Transitions for PnP Devices".

/// Of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The bus has it, and nobody drives it.
    Found,
    /// A driver has put its device on top.
    Added,
    /// It works.
    Started,
    /// Its driver has agreed that it goes.
    RemovePending,
    /// It is gone, and its driver knows.
    Surprised,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// AddDevice.
    Add,
    /// IRP_MN_START_DEVICE.
    Start,
    /// IRP_MN_QUERY_REMOVE_DEVICE.
    QueryRemove,
    /// IRP_MN_CANCEL_REMOVE_DEVICE.
    CancelRemove,
    /// IRP_MN_SURPRISE_REMOVAL.
    SurpriseRemove,
    /// IRP_MN_REMOVE_DEVICE.
    Remove,
}

impl State {
    /// What it is after the step; `None`: it is not allowed now.
    pub const fn after(self, step: Step) -> Option<Self> {
        Some(match (self, step) {
            (Self::Found, Step::Add) => Self::Added,
            (Self::Added, Step::Start) | (Self::RemovePending, Step::CancelRemove) => Self::Started,
            (Self::Started, Step::QueryRemove) => Self::RemovePending,
            (Self::Started | Self::RemovePending, Step::SurpriseRemove) => Self::Surprised,
            (Self::Added | Self::RemovePending | Self::Surprised, Step::Remove) => Self::Found,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{State::*, Step, Step::*};

    #[test]
    fn a_device_is_asked_before_it_is_removed_and_started_once() {
        assert_eq!(Started.after(Remove), None, "not unasked");
        assert_eq!(Started.after(Start), None);
        assert_eq!(Found.after(Start), None, "not without a driver");
        assert_eq!(Surprised.after(Start), None, "what is gone is removed first");
        assert_eq!(Started.after(CancelRemove), None);
        assert_eq!(Surprised.after(CancelRemove), None);
        assert_eq!(Surprised.after(QueryRemove), None);
    }

    #[test]
    fn every_state_leads_back() {
        let ways: [&[Step]; 4] = [
            &[Add, Remove],
            &[Add, Start, QueryRemove, Remove],
            &[Add, Start, QueryRemove, CancelRemove, SurpriseRemove, Remove],
            &[Add, Start, QueryRemove, SurpriseRemove, Remove],
        ];
        for way in ways {
            let end = way.iter().try_fold(Found, |state, &step| state.after(step));
            assert_eq!(end, Some(Found), "{way:?}");
        }
    }
}
