use super::*;

fn of(code: &str, detail: &str) -> RedisError {
    classify_code(code, cut(detail)).error
}

#[test]
fn only_listed_codes_mean_damage() {
    for known in &KNOWN {
        assert!(matches!(of(known.code, "why"), RedisError::Unavailable(_) | RedisError::Refused(_)), "{}", known.code);
    }
    for code in ["ERR", "UNHEARDOF", "NOPROTO", "INPROG", "STALE", "NOGOODSLAVE", "MULTI", ""] {
        assert!(matches!(of(code, "why"), RedisError::Refused(_)), "{code}");
    }
    for (code, detail) in [
        ("WRONGTYPE", "Operation against a key holding the wrong kind of value"),
        ("DAMAGED", "what is stored under mesa:state:{a} cannot be read"),
        ("ERR", "user_script:12: attempt to index local 'S' (a nil value) script: c0ffee, on @user_script:12."),
        ("ERR", "Error running script (call to f_c0ffee): @user_script:12: WRONGTYPE Operation against"),
        ("ERR", "Error running script (call to f_c0ffee): @user_script:12: user_script:12: attempt to index"),
    ] {
        assert!(matches!(of(code, detail), RedisError::Damaged(_)), "{code} {detail}");
    }
    for (code, detail) in [
        ("OOM", "command not allowed when used memory > 'maxmemory'."),
        ("ERR", "Error running script (call to f_c0ffee): @user_script:1: -OOM command not allowed when used"),
    ] {
        assert!(matches!(of(code, detail), RedisError::Full(_)), "{code} {detail}");
    }
}

#[test]
fn refusal_counts_until_the_request_is_answered_or_not_repeated() {
    let (mut refusals, start) = (Refusals::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let current = |refusals: &Refusals, seconds| {
        refusals.current(at(seconds)).map(|(why, since)| (why.to_string(), since.as_secs()))
    };
    let (one, all) = (false, true);
    let refused = |refusals: &mut Refusals, name: &[u8], why: &str, of, seconds| {
        refusals.refused(name.into(), why.into(), of, at(seconds), at(seconds));
    };
    let answered = |refusals: &mut Refusals, name: &[u8], seconds| refusals.answered(|| name.into(), at(seconds));
    refused(&mut refusals, b"HSET", "a", one, 0);
    refused(&mut refusals, b"XADD", "b", one, 1);
    assert_eq!(current(&refusals, 2), Some(("b".into(), 2)));
    assert!(!answered(&mut refusals, b"GET", 2));
    assert!(!answered(&mut refusals, b"XADD", 2), "another is refused still");
    assert_eq!(current(&refusals, 3), Some(("a".into(), 3)));
    refused(&mut refusals, b"HSET", "c", one, 5);
    assert_eq!(current(&refusals, 10), Some(("c".into(), 10)));
    assert_eq!(current(&refusals, 11), None);
    assert!(answered(&mut refusals, b"HSET", 11));
    assert!(!answered(&mut refusals, b"HSET", 11), "it is not refused any more");
    refused(&mut refusals, b"HSET", "d", all, 12);
    assert!(!answered(&mut refusals, b"GET", 11), "it was sent before");
    assert_eq!(current(&refusals, 13), Some(("d".into(), 1)));
    assert!(answered(&mut refusals, b"GET", 13), "nothing is answered while all is refused");
    refused(&mut refusals, b"HSET", "e", all, 12);
    assert_eq!(current(&refusals, 13), None, "it is reported late");
    for n in 0..1000_u32 {
        refused(&mut refusals, &n.to_be_bytes(), "f", one, 20);
    }
    assert_eq!(refusals.refused.len(), REFUSALS_MAX);
}

#[test]
fn refusal_with_a_general_code_says_what_to_do() {
    for (detail, expected) in [
        ("Protocol error: unauthenticated multibulk length", "(NOAUTH: ERR: Protocol error: unauthenticated"),
        ("Protocol error: unauthenticated bulk length", "redis://:PASSWORD@HOST"),
        ("max number of clients reached", "`maxclients`"),
        ("This instance has cluster support disabled", "not as an array"),
        ("DB index is out of range", "`databases`"),
        ("unknown command 'XADD', with args beginning with: ", "`rename-command`"),
        ("something new", "documentation of Redis"),
    ] {
        let text = of("ERR", detail).to_string();
        assert!(text.contains(expected), "{text}");
    }
    let full = of("OOM", "command not allowed when used memory > 'maxmemory'.").to_string();
    assert!(full.contains("Raise its setting `maxmemory`"), "{full}");
}

#[test]
fn refusal_names_the_code_and_what_to_do() {
    let text =
        of("NOPERM", "this user has no permissions to run the 'hset' command script: c0ffee, on @user_script:3.");
    let text = text.to_string();
    assert!(text.contains("(NOPERM: this user has no permissions to run the 'hset' command)"), "{text}");
    assert!(text.contains("ACL SETUSER"), "{text}");
    let wrapped = "Error running script (call to f_c0ffee): @user_script: 12: NOPERM this user has no permissions";
    assert!(of("ERR", wrapped).to_string().contains("(NOPERM: this user has no permissions)"));
    let within =
        "The user executing the script can't run this command or subcommand script: c0ffee, on @user_script:3.";
    assert!(of("ERR", within).to_string().contains("(NOPERM: The user executing"));
    let silent = of("WRONGPASS", "").to_string();
    assert!(silent.ends_with("(WRONGPASS)"), "{silent}");
    let unknown = of("UNHEARDOF", &"é".repeat(400)).to_string();
    assert!(unknown.contains("UNHEARDOF") && unknown.len() < DETAIL_BYTES_MAX + 200, "{unknown}");
}
