use super::*;

#[test]
fn consecutive_pages_list_each_user_once() {
    let presence = Presence::default();
    let ids: Vec<UserId> = (0..10).map(|n| UserId::new(&format!("u{n}")).unwrap()).collect();
    ids.iter().rev().for_each(|id| presence.set_session_count(id, 1));
    presence.set_session_count(&ids[4], 0);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = presence.page(after.as_ref(), 4);
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        seen.extend(page);
    }
    let expected: Vec<UserId> = ids.into_iter().filter(|id| id.as_str() != "u4").collect();
    assert_eq!(seen, expected);
}
