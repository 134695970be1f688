use super::*;

#[test]
fn delays_double_up_to_bound_and_reset() {
    let millis = Duration::from_millis;
    let mut backoff = Backoff::new(millis(100), millis(1000));
    for bound in [100, 200, 400, 800, 1000, 1000] {
        let delay = backoff.next(None);
        assert!((millis(bound / 2)..=millis(bound)).contains(&delay), "{delay:?} of {bound} ms");
    }
    for _ in 0..100 {
        assert!(backoff.next(None) <= millis(1000));
    }
    assert_eq!(backoff.next(Some(millis(5000))), millis(5000));
    backoff.reset();
    let delays: Vec<_> = (0..20).map(|_| Backoff::new(millis(100), millis(1000)).next(None)).collect();
    assert!(delays.iter().all(|delay| *delay <= millis(100)));
    assert!(delays.iter().any(|delay| *delay != delays[0]), "expected jitter in {delays:?}");
    assert!(backoff.next(None) <= millis(100));
}
