use proptest::prelude::*;

use super::*;

fn frame(head: u8, payload: usize) -> Vec<u8> {
    let mut frame = vec![head];
    match payload {
        0..126 => frame.push(MASKED | payload as u8),
        126..65536 => {
            frame.push(MASKED | 0x7e);
            frame.extend((payload as u16).to_be_bytes());
        }
        _ => {
            frame.push(MASKED | 0x7f);
            frame.extend((payload as u64).to_be_bytes());
        }
    }
    // Payload that looks like headers of fragments.
    frame.extend(std::iter::repeat_n(0, payload + MASK_BYTES));
    frame
}

proptest! {
    #[test]
    fn fragments_in_any_stream_cut_anywhere_are_counted(
        frames in prop::collection::vec((any::<bool>(), prop::sample::select(vec![0_u8, 1, 9, 10]), prop::sample::select(vec![0_usize, 1, 125, 126, 70_000])), 0..12),
        cut in 1_usize..64,
    ) {
        let mut fragments = Fragments::default();
        let stream: Vec<u8> =
            frames.iter().flat_map(|(fin, opcode, payload)| frame(if *fin { FIN } else { 0 } | opcode, *payload)).collect();
        stream.chunks(cut).for_each(|piece| assert_eq!(fragments.read(piece), piece.len()));
        prop_assert_eq!(fragments.take() as usize, frames.iter().filter(|(fin, ..)| !fin).count());
        prop_assert!(!fragments.any());
    }
}

#[test]
fn close_frame_is_withheld_behind_its_header_wherever_the_stream_is_cut() {
    let body = [0, 0, 0, 0, 3, 0xe8];
    let stream = [&frame(FIN | 1, 126)[..], &[FIN | CLOSE, MASKED | 2], &body, &frame(0, 7)].concat();
    let passed = frame(FIN | 1, 126).len() + 2;
    for cut in 1..stream.len() {
        let mut fragments = Fragments::default();
        let read: usize = stream.chunks(cut).map(|piece| fragments.read(piece)).sum();
        assert_eq!((read, fragments.any()), (passed, false), "{cut}");
        assert_eq!(fragments.close().unwrap().parse(), Ok(Some((1000, String::new()))), "{cut}");
    }
    // A length of two bytes where one is sufficient.
    let mut fragments = Fragments::default();
    assert_eq!(fragments.read(&[FIN | CLOSE, MASKED | 0x7e, 0, 1, 0, 0, 0, 0, 7]), 4);
    assert!(fragments.close().unwrap().parse().is_err());
    for other in
        [&[CLOSE, MASKED][..], &[FIN | CLOSE, 0], &[FIN | CLOSE | 0x40, MASKED], &[FIN | CLOSE, MASKED | 0x7e, 0, 126]]
    {
        let mut fragments = Fragments::default();
        let stream = [other, &[0; 300]].concat();
        assert_eq!(fragments.read(&stream), stream.len(), "{other:?}");
    }
}

#[test]
fn fragment_count_is_reset_by_a_complete_message_and_not_by_control_frames() {
    let mut fragments = Fragments::default();
    for _ in 0..FRAGMENTS_PER_MESSAGE_MAX {
        fragments.read(&frame(0, 0));
        fragments.read(&frame(FIN | 9, 1));
    }
    assert!(!fragments.too_many());
    fragments.read(&frame(0, 0));
    assert!(fragments.too_many());
    fragments.read(&frame(FIN, 0));
    assert!(!fragments.too_many());
}
