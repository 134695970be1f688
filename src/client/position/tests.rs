use super::*;

#[test]
fn file_positions_survive_a_new_store_and_leave_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alice");
    assert_eq!(FilePositions::new(&path).load().unwrap(), None);
    // A lower position replaces a higher one: the server's store may have been replaced.
    for position in [7, 12_345_678_901, 3] {
        FilePositions::new(&path).save(position).unwrap();
        assert_eq!(FilePositions::new(&path).load().unwrap(), Some(position));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// A file that is not a position must not count as the beginning of the log, which would repeat every message.
#[test]
fn file_positions_reject_a_file_without_a_position() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alice");
    for text in ["", "x", "1 2", "-1"] {
        fs::write(&path, text).unwrap();
        let error = FilePositions::new(&path).load().unwrap_err();
        assert!(error.to_string().contains("delete this one"), "{text:?}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    let error = FilePositions::new(directory.path().join("none/alice")).save(1).unwrap_err();
    assert!(error.to_string().contains("writable"), "{error}");
}
