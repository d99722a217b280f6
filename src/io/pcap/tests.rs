//! What is written reads back, what others wrote reads too, and what is broken says where.

use proptest::collection::vec;
use proptest::prelude::*;

use super::input::ByteOrder;
use super::*;

/// A record that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Owned {
    time: u64,
    interface: usize,
    original_length: u32,
    bytes: Vec<u8>,
}

fn owned(time: u64, interface: usize, original_length: u32, bytes: &[u8]) -> Owned {
    Owned { time, interface, original_length, bytes: bytes.to_vec() }
}

/// All that can be read of a capture, and what ended it.
fn read(capture: &[u8]) -> (Vec<Owned>, Vec<Interface>, Option<Error>) {
    let mut reader = match Reader::new(capture) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Vec::new(), Some(error)),
    };
    let mut records = Vec::new();
    let error = loop {
        match reader.next_record() {
            Ok(Some(record)) => records.push(owned(
                record.time.as_nanos(),
                record.interface,
                record.original_length,
                record.bytes,
            )),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    // Whatever ended it, it stays ended.
    assert!(matches!(reader.next_record(), Ok(None)));
    (records, reader.interfaces().to_vec(), error)
}

/// What can be read of a capture that is in order.
fn read_whole(capture: &[u8]) -> (Vec<Owned>, Vec<Option<String>>) {
    let (records, interfaces, error) = read(capture);
    assert!(error.is_none(), "{error:?}");
    (records, interfaces.into_iter().map(|interface| interface.name).collect())
}

/// Files in either byte order, number by number, for what the writers do not write.
struct Hand {
    order: ByteOrder,
    bytes: Vec<u8>,
}

impl Hand {
    fn new(order: ByteOrder) -> Self {
        Self { order, bytes: Vec::new() }
    }

    fn u16(mut self, value: u16) -> Self {
        self.bytes.extend(if self.order == ByteOrder::Big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        });
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.bytes.extend(if self.order == ByteOrder::Big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        });
        self
    }

    fn padded(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn classic(order: ByteOrder, magic: u32) -> Self {
        Self::new(order).u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65_535).u32(1)
    }

    fn frame(self, seconds: u32, fraction: u32, original: u32, bytes: &[u8]) -> Self {
        let mut hand = self.u32(seconds).u32(fraction).u32(bytes.len() as u32).u32(original);
        hand.bytes.extend(bytes);
        hand
    }

    fn block(self, block_type: u32, body: impl FnOnce(Self) -> Self) -> Self {
        let order = self.order;
        let body = body(Self::new(order)).bytes;
        let length = body.len() as u32 + 12;
        self.u32(block_type).u32(length).padded(&body).u32(length)
    }

    fn section(self) -> Self {
        self.block(ng::SECTION_HEADER, |body| body.u32(ng::BYTE_ORDER_MAGIC).u16(1).u16(0).u32(!0).u32(!0))
    }

    fn interface(self, link_type: u16, snap_length: u32, options: &[(u16, &[u8])]) -> Self {
        self.block(ng::INTERFACE_DESCRIPTION, |body| {
            let body = body.u16(link_type).u16(0).u32(snap_length);
            options
                .iter()
                .fold(body, |body, (code, value)| body.u16(*code).u16(value.len() as u16).padded(value))
        })
    }

    fn enhanced(self, interface: u32, units: u64, bytes: &[u8]) -> Self {
        self.block(ng::ENHANCED_PACKET, |body| {
            body.u32(interface)
                .u32((units >> 32) as u32)
                .u32(units as u32)
                .u32(bytes.len() as u32)
                .u32(bytes.len() as u32)
                .padded(bytes)
        })
    }

    fn simple(self, original: u32, bytes: &[u8]) -> Self {
        self.block(ng::SIMPLE_PACKET, |body| body.u32(original).padded(bytes))
    }
}

const ORDERS: [ByteOrder; 2] = [ByteOrder::Big, ByteOrder::Little];

#[test]
fn classic_files_of_both_orders_and_resolutions_are_read() {
    for order in ORDERS {
        for (magic, time) in
            [(classic::MAGIC_MICROSECONDS, 7_000_005_000), (classic::MAGIC_NANOSECONDS, 7_000_000_005)]
        {
            let file = Hand::classic(order, magic).frame(7, 5, 90, b"frame").frame(8, 0, 0, b"");
            let (records, names) = read_whole(&file.bytes);
            assert_eq!(records, [owned(time, 0, 90, b"frame"), owned(8_000_000_000, 0, 0, b"")]);
            assert_eq!(names, [None]);
        }
    }
}

#[test]
fn sections_have_their_own_order_and_interfaces() {
    for order in ORDERS {
        let other = if order == ByteOrder::Big { ByteOrder::Little } else { ByteOrder::Big };
        let first = Hand::new(order)
            .section()
            .interface(1, 0, &[(1, b"comment"), (ng::INTERFACE_NAME, b"eth0"), (ng::END_OF_OPTIONS, b"")])
            .block(0x0bad, |body| body.padded(&[7; 10_000])) // unknown, longer than is skipped at once
            .interface(1, 4, &[(ng::INTERFACE_NAME, b"eth\xff"), (ng::TIME_RESOLUTION, &[9])])
            .enhanced(1, 5_000_000_001, b"one")
            .block(ng::PACKET, |body| body.u16(0).u16(99).u32(0).u32(6).u32(3).u32(60).padded(b"two"))
            .simple(5, b"three");
        // The second section's interface limits simple packets to four bytes.
        let second =
            Hand::new(other).section().interface(1, 4, &[]).simple(9, b"four").enhanced(0, 8, b"fives");
        let (records, names) = read_whole(&[first.bytes, second.bytes].concat());
        assert_eq!(
            records,
            [
                owned(5_000_000_001, 1, 3, b"one"),
                owned(6_000, 0, 60, b"two"),
                owned(6_000, 0, 5, b"three"),
                owned(6_000, 2, 9, b"four"),
                owned(8_000, 2, 5, b"fives"),
            ]
        );
        assert_eq!(names, [Some("eth0".to_owned()), Some("eth\u{fffd}".to_owned()), None]);
    }
}

#[test]
fn times_count_what_the_interface_says() {
    let rows = [
        // (resolution, offset in seconds, units, nanoseconds)
        (6, 0, 1_700_000_000_000_001, Some(1_700_000_000_000_001_000)),
        (0, 0, 5, Some(5_000_000_000)),
        (3, 0, 5, Some(5_000_000)),
        (9, 0, 5, Some(5)),
        (12, 0, 5_999, Some(5)),
        (127, 0, u64::MAX, Some(0)),
        (0x80, 0, 5, Some(5_000_000_000)),
        (0x80 | 10, 0, 1536, Some(1_500_000_000)),
        (0xff, 0, u64::MAX, Some(0)),
        (9, 2, 5, Some(2_000_000_005)),
        (0, -3, 5, Some(2_000_000_000)),
        (0, -6, 5, None),
        (0, 0, u64::MAX, None),
        (0, i64::MIN, 0, None),
        (6, i64::MAX, u64::MAX, None),
        (9, 0, u64::MAX, Some(u64::MAX)),
    ];
    for (resolution, offset, units, expected) in rows {
        let clock = Clock { resolution, offset };
        assert_eq!(clock.instant(units).map(Instant::as_nanos), expected, "{clock:?} {units}");
        let file = Hand::new(ByteOrder::Big)
            .section()
            .interface(
                1,
                0,
                &[(ng::TIME_RESOLUTION, &[resolution]), (ng::TIME_OFFSET, &offset.to_be_bytes())],
            )
            .enhanced(0, units, b"");
        let (records, _, error) = read(&file.bytes);
        assert_eq!(records.first().map(|record| record.time), expected);
        assert_eq!(matches!(error, Some(Error::Time { .. })), expected.is_none());
    }
}

/// A file in little-endian order, begun in the usual way.
fn begun() -> Hand {
    Hand::new(ByteOrder::Little).section().interface(1, 0, &[])
}

#[test]
fn broken_captures_say_what_is_wrong_and_where() {
    let classic = || Hand::classic(ByteOrder::Little, classic::MAGIC_MICROSECONDS);
    let patched = |mut file: Vec<u8>, at: usize, byte| {
        file[at] = byte;
        file
    };
    let cut = |mut file: Vec<u8>, length| {
        file.truncate(length);
        file
    };
    let large = MAX_FRAME_LENGTH as u32 + 1;
    let many =
        (0..=MAX_INTERFACES).fold(Hand::new(ByteOrder::Big).section(), |file, _| file.interface(1, 0, &[]));
    // A section header has 28 bytes, an interface description without options 20.
    let rows: [(&str, Vec<u8>, &str); 24] = [
        ("nothing", vec![], "byte 0: the file ends in the middle of the file header"),
        ("three bytes", vec![0xa1, 0xb2, 0xc3], "byte 3: the file ends in the middle of the file header"),
        ("gzip", vec![0x1f, 0x8b, 8, 0], "not a pcap or pcapng file: it begins with [1f, 8b, 08, 00]"),
        ("header cut", cut(classic().bytes, 23), "byte 23: the file ends in the middle of the file header"),
        ("version", patched(classic().bytes, 4, 3), "byte 4: version 3.4 of the format is not supported"),
        (
            "raw IP",
            patched(classic().bytes, 20, 101),
            "byte 20: frames of link type 101; only Ethernet (link type 1) is read",
        ),
        (
            "frame header cut",
            cut(classic().frame(0, 0, 3, b"abc").bytes, 39),
            "byte 39: the file ends in the middle of a frame's header",
        ),
        (
            "frame cut",
            cut(classic().frame(0, 0, 3, b"abc").bytes, 42),
            "byte 42: the file ends in the middle of a frame",
        ),
        (
            "frame too long",
            classic().u32(0).u32(0).u32(large).u32(large).bytes,
            "byte 24: a length of 262145 bytes, over the limit of 262144: the file is damaged",
        ),
        (
            "no byte order",
            patched(begun().bytes, 8, 0),
            "byte 0: a section header without its byte order: the file is damaged",
        ),
        (
            "pcapng version",
            patched(begun().bytes, 12, 2),
            "byte 12: version 2.0 of the format is not supported",
        ),
        (
            "section header too short",
            Hand::new(ByteOrder::Little)
                .block(ng::SECTION_HEADER, |body| body.u32(ng::BYTE_ORDER_MAGIC).u32(1).u32(0))
                .bytes,
            "byte 0: a section header shorter than it must be: the file is damaged",
        ),
        ("section cut", cut(begun().bytes, 20), "byte 20: the file ends in the middle of a section header"),
        (
            "lengths differ",
            patched(begun().bytes, 44, 1),
            "byte 28: a block whose two lengths differ: the file is damaged",
        ),
        (
            "odd length",
            patched(begun().bytes, 32, 21),
            "byte 28: a block whose length is no multiple of four: the file is damaged",
        ),
        (
            "block of 8 bytes",
            patched(begun().bytes, 32, 8),
            "byte 28: a block shorter than its own frame: the file is damaged",
        ),
        (
            "interface cut off",
            begun().block(ng::INTERFACE_DESCRIPTION, |body| body.u32(1)).bytes,
            "byte 48: an interface description shorter than it must be: the file is damaged",
        ),
        (
            "block too long",
            begun().u32(ng::ENHANCED_PACKET).u32(0x0100_0000).bytes,
            "byte 48: a length of 16777216 bytes, over the limit of 327680: the file is damaged",
        ),
        (
            "block header cut",
            begun().u32(9).bytes,
            "byte 52: the file ends in the middle of a block's header",
        ),
        (
            "skipped block cut",
            begun().u32(9).u32(!3).u32(0).bytes,
            "byte 60: the file ends in the middle of a block",
        ),
        (
            "no such interface",
            begun().enhanced(1, 0, b"").bytes,
            "byte 48: a frame of interface 1, which the section does not describe",
        ),
        (
            "not Ethernet",
            begun().interface(113, 0, &[]).enhanced(0, 0, b"").enhanced(1, 0, b"").bytes,
            "byte 100: frames of link type 113; only Ethernet (link type 1) is read",
        ),
        (
            "frame longer than its block",
            begun().block(ng::ENHANCED_PACKET, |body| body.u32(0).u32(0).u32(0).u32(5).u32(5).u32(0)).bytes,
            "byte 48: a frame longer than its block: the file is damaged",
        ),
        ("too many interfaces", many.bytes, "byte 20508: more than 1024 interfaces"),
    ];
    for (what, file, expected) in rows {
        let (_, _, error) = read(&file);
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(expected), "{what}");
    }
}

#[test]
fn what_was_read_before_the_damage_stands() {
    let file = begun().enhanced(0, 1, b"whole").enhanced(0, 2, b"cut off").bytes;
    let (records, _, error) = read(&file[..file.len() - 1]);
    assert_eq!(records, [owned(1000, 0, 5, b"whole")]);
    assert!(matches!(error, Some(Error::Truncated { what: "a block", .. })), "{error:?}");
}

#[test]
fn errors_of_the_stream_are_passed_on() {
    struct Failing;
    impl io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let error = Reader::new(Failing).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Read { offset: 0, .. }), "{error:?}");
    let missing = Reader::open("/nonexistent/capture.pcap").map(|_| ()).unwrap_err();
    assert!(matches!(missing, Error::Read { offset: 0, .. }), "{missing:?}");
}

#[test]
fn writers_refuse_what_a_file_cannot_say() {
    let mut writer = Writer::new(Vec::new(), Resolution::Nanoseconds).unwrap();
    assert!(writer.write(Instant::from_nanos(4_294_967_296_000_000_000), 0, b"").is_err());
    assert!(writer.write(Instant::ZERO, 0, &vec![0; MAX_FRAME_LENGTH + 1]).is_err());
    let mut writer = NgWriter::new(Vec::new()).unwrap();
    assert!(writer.write(0, Instant::ZERO, 0, b"").is_err());
    for number in 0..MAX_INTERFACES {
        assert_eq!(writer.add_interface("x").unwrap(), number as u32);
    }
    assert!(writer.add_interface("one too many").is_err());
    assert!(writer.write(0, Instant::ZERO, 0, &vec![0; MAX_FRAME_LENGTH + 1]).is_err());
    writer.write(0, Instant::ZERO, 0, &vec![7; MAX_FRAME_LENGTH]).unwrap();
    let (records, names) = read_whole(&writer.finish().unwrap());
    assert_eq!((records[0].bytes.len(), names.len()), (MAX_FRAME_LENGTH, MAX_INTERFACES));
}

#[test]
fn long_names_are_cut_between_characters() {
    let mut writer = NgWriter::new(Vec::new()).unwrap();
    writer.add_interface(&"\u{e9}".repeat(200)).unwrap();
    let (_, names) = read_whole(&writer.finish().unwrap());
    assert_eq!(names, [Some("\u{e9}".repeat(127))]);
}

prop_compose! {
    fn any_record()(
        time in 0..4_294_967_296_000_000_000_u64,
        interface in 0_usize..3,
        original_length: u32,
        bytes in vec(any::<u8>(), 0..100),
    ) -> Owned {
        Owned { time, interface, original_length, bytes }
    }
}

proptest! {
    #[test]
    fn classic_files_read_back(records in vec(any_record(), 0..10), nanoseconds: bool) {
        let (resolution, unit) =
            if nanoseconds { (Resolution::Nanoseconds, 1) } else { (Resolution::Microseconds, 1000) };
        let mut writer = Writer::new(Vec::new(), resolution).unwrap();
        for record in &records {
            writer.write(Instant::from_nanos(record.time), record.original_length, &record.bytes).unwrap();
        }
        let expected: Vec<_> = records
            .into_iter()
            .map(|record| Owned { time: record.time / unit * unit, interface: 0, ..record })
            .collect();
        prop_assert_eq!(read_whole(&writer.finish().unwrap()), (expected, vec![None]));
    }

    #[test]
    fn pcapng_files_read_back(records in vec(any_record(), 0..10), names in vec(".{0,20}", 3)) {
        let mut writer = NgWriter::new(Vec::new()).unwrap();
        for name in &names {
            writer.add_interface(name).unwrap();
        }
        for record in &records {
            let time = Instant::from_nanos(record.time);
            writer.write(record.interface as u32, time, record.original_length, &record.bytes).unwrap();
        }
        let names = names.into_iter().map(Some).collect();
        prop_assert_eq!(read_whole(&writer.finish().unwrap()), (records, names));
    }

    #[test]
    fn noise_never_panics(mut noise in vec(any::<u8>(), 0..300), beginning in 0..6_usize) {
        let beginnings: [Vec<u8>; 6] = [
            Vec::new(),
            classic::MAGIC_MICROSECONDS.to_be_bytes().to_vec(),
            Hand::classic(ByteOrder::Big, classic::MAGIC_NANOSECONDS).bytes,
            Hand::new(ByteOrder::Big).section().bytes,
            begun().bytes,
            begun().u32(ng::INTERFACE_DESCRIPTION).u32(280).bytes,
        ];
        let mut file = beginnings[beginning].clone();
        file.append(&mut noise);
        let _ = read(&file);
    }

    #[test]
    fn damaged_captures_never_panic(
        big: bool,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let order = if big { ByteOrder::Big } else { ByteOrder::Little };
        let mut file = Hand::new(order)
            .section()
            .interface(1, 0, &[(ng::INTERFACE_NAME, b"eth0"), (ng::TIME_RESOLUTION, &[9])])
            .enhanced(0, 1, b"frame")
            .simple(5, b"frame")
            .block(5, |body| body.u32(0))
            .enhanced(0, 1, b"frame")
            .bytes;
        for (place, value) in changes {
            let place = place.index(file.len());
            file[place] = value;
        }
        if cut {
            file.truncate(keep.index(file.len()));
        }
        let _ = read(&file);
    }
}
