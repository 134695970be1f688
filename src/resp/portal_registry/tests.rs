use super::*;

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn bound(registry: &PortalRegistry) -> Vec<(ConnectionNumber, Vec<&str>)> {
    registry.subscriptions.iter().map(|one| (one.number, one.ids.iter().map(String::as_str).collect())).collect()
}

/// Adds a portal with three connections: `first`, the next, and the one after that, which subscribes.
fn add_portal(registry: &mut PortalRegistry, id: &str, first: ConnectionNumber, address: IpAddr, now: Instant) {
    registry.subscribe(first + 2, address, now);
    registry.announce(id, first + 1, address, now);
    registry.announce(id, first, address, now);
}

#[test]
fn portal_is_bound_to_its_own_subscription_in_any_order() {
    let now = Instant::now();
    let mut registry = PortalRegistry::default();
    registry.subscribe(6, LOCAL, now);
    registry.announce("two", 5, LOCAL, now);
    assert_eq!(bound(&registry), [(6, vec!["two"])]);
    registry.announce("one", 2, LOCAL, now);
    registry.announce("one", 1, LOCAL, now);
    assert_eq!(bound(&registry), [(6, vec!["two"])], "portal one has no subscription yet");
    registry.subscribe(3, LOCAL, now);
    registry.announce("two", 4, LOCAL, now);
    add_portal(&mut registry, "other", 7, OTHER, now);
    assert_eq!(bound(&registry), [(6, vec!["two"]), (3, vec!["one"]), (9, vec!["other"])]);
}

#[test]
fn portal_that_leaves_or_disconnects_is_unbound() {
    let now = Instant::now();
    let mut registry = PortalRegistry::default();
    add_portal(&mut registry, "one", 1, LOCAL, now);
    assert!(registry.leave("one", now) && !registry.leave("one", now));
    assert_eq!(bound(&registry), [(3, vec![])]);
    assert_eq!(registry.unsubscribe(3, now).unwrap().ids, [""; 0]);
    add_portal(&mut registry, "two", 4, LOCAL, now);
    for number in [4, 5] {
        registry.close(number, now);
    }
    assert_eq!(bound(&registry)[0], (6, vec!["two"]), "its subscription is still open");
    assert_eq!(registry.unsubscribe(6, now).unwrap().ids, ["two"]);
    assert!(!registry.sweep(now + RETURN_TIMEOUT) && registry.sweep(now + RETURN_TIMEOUT * 2));
    assert_eq!(registry.ids().count(), 0);
}

#[test]
fn returning_subscription_is_bound_to_lost_portal() {
    let now = Instant::now();
    let mut registry = PortalRegistry::remembered(vec![AnnouncedPortal { id: "one".into(), address: LOCAL }], now);
    registry.subscribe(1, LOCAL, now);
    registry.subscribe(2, OTHER, now);
    assert_eq!(bound(&registry), [(1, vec![]), (2, vec![])], "the subscription may belong to a new portal");
    assert!(!registry.sweep(now + ANNOUNCE_TIMEOUT));
    assert_eq!(bound(&registry), [(1, vec!["one"]), (2, vec![])]);
    assert!(!registry.sweep(now + RETURN_TIMEOUT * 9), "a bound portal is not removed");
    // A new portal announces itself after its subscription was bound to the old id.
    let mut registry = PortalRegistry::remembered(vec![AnnouncedPortal { id: "one".into(), address: LOCAL }], now);
    registry.subscribe(3, LOCAL, now);
    registry.sweep(now + ANNOUNCE_TIMEOUT);
    registry.announce("new", 1, LOCAL, now + ANNOUNCE_TIMEOUT);
    assert_eq!(bound(&registry), [(3, vec!["new"])]);
}

#[test]
fn ambiguous_subscription_is_bound_to_all_possible_ids() {
    let now = Instant::now();
    let ids = ["one", "two"].map(|id| AnnouncedPortal { id: id.into(), address: LOCAL });
    let mut registry = PortalRegistry::remembered(ids.to_vec(), now);
    registry.subscribe(1, LOCAL, now);
    registry.subscribe(2, LOCAL, now);
    registry.sweep(now + ANNOUNCE_TIMEOUT);
    assert_eq!(bound(&registry), [(1, vec!["two", "one"]), (2, vec!["two", "one"])]);
    // An announcement of one identifies the other too.
    registry.announce("one", 3, LOCAL, now + ANNOUNCE_TIMEOUT);
    let mut now_bound = bound(&registry);
    now_bound.sort();
    assert_eq!(now_bound.iter().map(|(_, ids)| ids.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn swapped_portals_are_rebound_when_one_disconnects() {
    let now = Instant::now();
    let mut registry = PortalRegistry::default();
    // The connections of two portals are interleaved, so each is bound to the other's subscription.
    registry.announce("one", 1, LOCAL, now);
    registry.announce("two", 2, LOCAL, now);
    registry.subscribe(3, LOCAL, now);
    registry.subscribe(4, LOCAL, now);
    assert_eq!(bound(&registry), [(3, vec!["one"]), (4, vec!["two"])]);
    // The first subscription belongs to the second portal, which disconnects.
    registry.close(2, now);
    registry.unsubscribe(3, now);
    assert_eq!(bound(&registry), [(4, vec!["one"])]);
}

#[test]
fn ids_are_bounded_in_total_and_per_subscription() {
    let now = Instant::now();
    let mut registry = PortalRegistry::default();
    for n in 0..IDS_MAX as u64 + 10 {
        registry.announce(&n.to_string(), n, LOCAL, now);
        registry.close(n, now);
    }
    assert_eq!(registry.ids().count(), IDS_MAX);
    registry.subscribe(9999, LOCAL, now);
    registry.sweep(now + ANNOUNCE_TIMEOUT);
    assert_eq!(registry.subscriptions[0].ids.len(), IDS_PER_SUBSCRIPTION_MAX);
}

#[test]
fn portal_above_limit_replaces_an_absent_one_and_is_rejected_if_all_are_connected() {
    let now = Instant::now();
    let mut registry = PortalRegistry::default();
    for n in 0..IDS_MAX as u64 {
        assert_eq!(registry.announce(&n.to_string(), n, LOCAL, now), Some(true));
    }
    assert_eq!(registry.announce("more", 1000, LOCAL, now), None);
    assert_eq!(registry.announce("7", 7, LOCAL, now), Some(false), "a known portal is not one more");
    registry.close(7, now);
    assert_eq!(registry.announce("more", 1000, LOCAL, now), Some(true));
    let ids: Vec<_> = registry.ids().map(|announced| announced.id.as_str()).collect();
    assert!(ids.len() == IDS_MAX && ids.contains(&"0") && ids.contains(&"more") && !ids.contains(&"7"), "{ids:?}");
}

#[test]
fn connection_that_announces_again_is_counted_once() {
    let now = Instant::now();
    let mut registry = PortalRegistry::default();
    for number in [1, 2, 1] {
        registry.announce("one", number, LOCAL, now);
    }
    assert_eq!(registry.ids[0].connections, [1, 2]);
}
