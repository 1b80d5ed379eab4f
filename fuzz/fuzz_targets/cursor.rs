//! Cursors: a cursor keeps its meaning when it is read and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<hub::EventId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(id) = text.parse::<hub::LastEventId>() {
        let written = id.to_string();
        assert_eq!(written.parse(), Ok(id.clone()));
        for partition in [0, 1, 7, 1023, u16::MAX] {
            let again = written.parse::<hub::LastEventId>().expect("it was just written");
            assert_eq!(again.in_partition(partition), id.in_partition(partition));
        }
    }
});
