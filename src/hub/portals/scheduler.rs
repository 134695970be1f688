//! Whose turn it is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Bounds, SeatId, queue::Inbox};

/// One of those who take turns, or are told everything.
#[derive(Debug)]
pub(super) enum Member {
    Inbox(Arc<Inbox>),
    Seat {
        id: SeatId,
        room: bool,
    },
    /// At another server.
    Far(Arc<str>),
}

/// How well a member is placed to be given an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// There, and it has room.
    Ready,
    /// At another server, where somebody here would do as well.
    Far,
    /// There, and an older event has to go for this one.
    Full,
    /// Not there; it may come back.
    Away,
}

/// How far an event may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// To all alike.
    Anywhere,
    /// To other servers where nobody here has room.
    RatherHere,
    /// Not to other servers: it came from one.
    Here,
}

#[derive(Debug)]
pub(super) struct Turns {
    pub(super) members: Vec<Member>,
    in_turn: bool,
    /// Whose turn it was last.
    last: usize,
    seats: SeatId,
    chance: u64,
}

impl Member {
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Inbox(inbox) => inbox.has_reader(),
            Self::Seat { .. } => true,
            Self::Far(_) => false,
        }
    }

    pub(super) fn is_far(&self) -> bool {
        matches!(self, Self::Far(_))
    }

    /// `None`: it takes no turns.
    fn rank(&self, bytes: usize, bounds: &Bounds, reach: Reach) -> Option<Rank> {
        match self {
            Self::Far(_) => match reach {
                Reach::Anywhere => Some(Rank::Ready),
                Reach::RatherHere => Some(Rank::Far),
                Reach::Here => None,
            },
            Self::Inbox(inbox) if inbox.is_for_all() => None,
            Self::Inbox(inbox) if !inbox.has_reader() => Some(Rank::Away),
            Self::Inbox(inbox) => Some(if inbox.has_room(bytes, bounds) { Rank::Ready } else { Rank::Full }),
            Self::Seat { room, .. } => Some(if *room { Rank::Ready } else { Rank::Full }),
        }
    }
}

impl Turns {
    pub(super) fn new(in_turn: bool) -> Self {
        // Chance need not be secret.
        let chance = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        Self { members: Vec::new(), in_turn, last: 0, seats: 0, chance }
    }

    pub(super) fn inboxes(&self) -> impl Iterator<Item = &Arc<Inbox>> {
        self.members.iter().filter_map(|member| match member {
            Member::Inbox(inbox) => Some(inbox),
            Member::Seat { .. } | Member::Far(_) => None,
        })
    }

    /// Those that are here, or may come back.
    pub(super) fn near(&self) -> usize {
        self.members.iter().filter(|member| !member.is_far()).count()
    }

    pub(super) fn far(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().filter_map(|member| match member {
            Member::Far(portal) => Some(portal),
            _ => None,
        })
    }

    /// These are at other servers, and no others.
    pub(super) fn set_far(&mut self, portals: &[Arc<str>]) {
        self.members.retain(|member| !matches!(member, Member::Far(portal) if !portals.contains(portal)));
        for portal in portals {
            if !self.far().any(|known| known == portal) {
                self.members.push(Member::Far(portal.clone()));
            }
        }
    }

    pub(super) fn has_seat(&self, seat: SeatId) -> bool {
        self.members.iter().any(|member| matches!(member, Member::Seat { id, .. } if *id == seat))
    }

    pub(super) fn seat(&mut self) -> SeatId {
        self.seats += 1;
        self.members.push(Member::Seat { id: self.seats, room: true });
        self.seats
    }

    /// False if there was no such seat.
    pub(super) fn rise(&mut self, seat: SeatId) -> bool {
        let before = self.members.len();
        self.members.retain(|member| !matches!(member, Member::Seat { id, .. } if *id == seat));
        self.members.len() < before
    }

    pub(super) fn set_room(&mut self, seat: SeatId, has: bool) {
        for member in &mut self.members {
            if let Member::Seat { id, room } = member
                && *id == seat
            {
                *room = has;
            }
        }
    }

    /// Somebody takes turns, or may come back to it.
    pub(super) fn somebody_takes_turns(&self) -> bool {
        self.members.iter().any(|member| !matches!(member, Member::Inbox(inbox) if inbox.is_for_all()))
    }

    pub(super) fn somebody_has_room(&self, bytes: usize, bounds: &Bounds) -> bool {
        self.members.iter().any(|member| member.rank(bytes, bounds, Reach::Anywhere) == Some(Rank::Ready))
    }

    /// Forgets who does not come back; returns how many events are lost with that.
    pub(super) fn forget(&mut self, now: Instant, after: Duration) -> u64 {
        let mut lost = 0;
        self.members.retain(|member| match member {
            Member::Inbox(inbox) => match inbox.is_abandoned(now, after) {
                Some(waiting) => {
                    lost += waiting;
                    false
                }
                None => true,
            },
            Member::Seat { .. } | Member::Far(_) => true,
        });
        lost
    }

    /// Forgets the first of those that are away, and returns how many events are lost with that; `None` if none is.
    pub(super) fn forget_one(&mut self) -> Option<u64> {
        let is_away = |member: &Member| matches!(member, Member::Inbox(inbox) if !inbox.has_reader());
        let at = self.members.iter().position(is_away)?;
        match self.members.remove(at) {
            Member::Inbox(inbox) => Some(inbox.waiting()),
            Member::Seat { .. } | Member::Far(_) => None,
        }
    }

    /// Who is to have an event of so many bytes: one of those that are placed best.
    pub(super) fn choose(&mut self, bytes: usize, bounds: &Bounds, reach: Reach) -> Option<&Member> {
        let best = self.members.iter().filter_map(|member| member.rank(bytes, bounds, reach)).min()?;
        let is_best = |member: &Member| member.rank(bytes, bounds, reach) == Some(best);
        let at = if self.in_turn {
            let behind = self.members.iter().skip(self.last + 1).position(is_best).map(|at| self.last + 1 + at);
            behind.or_else(|| self.members.iter().position(is_best))?
        } else {
            let count = self.members.iter().filter(|member| is_best(member)).count();
            let skipped = self.chance(count);
            let mut all = self.members.iter().enumerate().filter(|(_, member)| is_best(member));
            all.nth(skipped)?.0
        };
        self.last = at;
        Some(&self.members[at])
    }

    /// A number below `count`, or 0.
    fn chance(&mut self, count: usize) -> usize {
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % count.max(1)
    }
}
