//! Runs the gate's program without a kernel, for tests.
//!
//! As strict as the verifier where that is cheap: a register or a byte of the stack is read
//! only after it was written, memory is touched only where it exists, a call gets what the
//! kernel demands. What breaks a rule panics. Maps are byte for byte those of the kernel.

use std::collections::BTreeMap;

use crate::{
    bpf::assembler::{Helper, Instruction, Operation, Program, When, code},
    layout::{Map, MapType, REPORT_INTERVAL_NS, Shape},
};

const CTX_BASE: u64 = 1 << 32;
const STACK_BASE: u64 = 2 << 32;
const STACK_BYTES: usize = 512;
const MAP_BASE: u64 = 3 << 32;
/// Values of maps lie from here on, each in a span of its own.
const VALUE_BASE: u64 = 4 << 32;
const VALUE_SPAN: u64 = 1 << 16;
/// Far more than a straight program of this length can run.
const STEPS_MAX: usize = 100_000;

/// What the program sees of the world, and what it did to it.
#[derive(Debug)]
pub(super) struct World {
    maps: BTreeMap<Map, BTreeMap<Vec<u8>, u64>>,
    values: Vec<Vec<u8>>,
    entries_max: BTreeMap<Map, usize>,
    pub(super) lineage: Vec<u64>,
    pub(super) now_ns: u64,
    pub(super) records: Vec<Vec<u8>>,
    pub(super) records_max: usize,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            maps: Map::ALL.map(|map| (map, BTreeMap::new())).into(),
            values: Vec::new(),
            entries_max: Map::ALL.map(|map| (map, map.shape().entries_max as usize)).into(),
            lineage: vec![1],
            now_ns: u64::from(REPORT_INTERVAL_NS) * 10,
            records: Vec::new(),
            records_max: usize::MAX,
        }
    }

    pub(super) fn limit(&mut self, map: Map, entries_max: usize) {
        self.entries_max.insert(map, entries_max);
    }

    /// Writes an entry as the system call does.
    pub(super) fn insert(&mut self, map: Map, key: &[u8], value: &[u8]) {
        assert!(self.update(map, key, value, 0), "{map:?} is full");
    }

    pub(super) fn value(&self, map: Map, key: &[u8]) -> Option<&[u8]> {
        let address = self.maps[&map].get(key)?;
        Some(&self.values[value_index(*address)])
    }

    fn lookup(&self, map: Map, key: &[u8]) -> u64 {
        let entries = &self.maps[&map];
        if map.shape().kind != MapType::Trie {
            return entries.get(key).copied().unwrap_or(0);
        }
        let matching = entries.iter().filter(|(prefix, _)| covers(prefix, key));
        matching.max_by_key(|(prefix, _)| prefix_bits(prefix)).map_or(0, |(_, address)| *address)
    }

    fn update(&mut self, map: Map, key: &[u8], value: &[u8], flags: u64) -> bool {
        let Shape { key_bytes, value_bytes, kind, .. } = map.shape();
        assert_eq!((key.len(), value.len()), (key_bytes as usize, value_bytes as usize));
        assert!(flags <= 1, "BPF_ANY or BPF_NOEXIST");
        let entries = self.maps.get_mut(&map).expect("every map is there");
        if let Some(address) = entries.get(key) {
            if flags == 0 {
                self.values[value_index(*address)] = value.to_vec();
            }
            return flags == 0;
        }
        if entries.len() >= self.entries_max[&map] {
            if kind != MapType::LruHash {
                return false;
            }
            entries.pop_first();
        }
        let address = VALUE_BASE + VALUE_SPAN * self.values.len() as u64;
        entries.insert(key.to_vec(), address);
        self.values.push(value.to_vec());
        true
    }
}

fn value_index(address: u64) -> usize {
    usize::try_from((address - VALUE_BASE) / VALUE_SPAN).expect("an address of this process")
}

fn prefix_bits(key: &[u8]) -> usize {
    u32::from_ne_bytes(*key.first_chunk().expect("a key of the trie")) as usize
}

/// Whether the first bits of two keys of the trie are the same, as many as the first says.
fn covers(prefix: &[u8], key: &[u8]) -> bool {
    let bit = |bytes: &[u8], at: usize| bytes[4 + at / 8] >> (7 - at % 8) & 1;
    let bits = prefix_bits(prefix);
    bits <= prefix_bits(key) && (0..bits).all(|at| bit(prefix, at) == bit(key, at))
}

/// Runs a program with a context of 12 bytes and gives back what it returns.
pub(super) fn run(program: &Program, world: &mut World, context: [u32; 3]) -> u64 {
    let bytes = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut machine = Machine {
        world,
        maps: program.maps.iter().copied().collect(),
        registers: [None; 11],
        context: bytes,
        stack: vec![None; STACK_BYTES],
    };
    machine.registers[1] = Some(CTX_BASE);
    machine.registers[10] = Some(STACK_BASE + STACK_BYTES as u64);
    let mut at = 0;
    for _ in 0..STEPS_MAX {
        let instruction = program.instructions[at];
        match machine.step(at, instruction) {
            Next::Follows => at += 1,
            Next::SkipsOne => at += 2,
            Next::Jumps => at = (at + 1).wrapping_add_signed(isize::from(instruction.offset)),
            Next::Ends => return machine.read(0),
        }
    }
    panic!("the program does not end");
}

enum Next {
    Follows,
    SkipsOne,
    Jumps,
    Ends,
}

struct Machine<'world> {
    world: &'world mut World,
    maps: BTreeMap<usize, Map>,
    registers: [Option<u64>; 11],
    context: Vec<u8>,
    stack: Vec<Option<u8>>,
}

impl Machine<'_> {
    fn step(&mut self, at: usize, instruction: Instruction) -> Next {
        let Instruction { code, destination, source, offset, immediate } = instruction;
        let value = i64::from(immediate).cast_unsigned();
        let width = if code & 0x18 == 0x18 { 8 } else { 4 };
        match code {
            code::EXIT => return Next::Ends,
            code::CALL => self.call(immediate),
            code::LOAD_WIDE => {
                assert_eq!(source, code::SOURCE_IS_MAP);
                let map = Map::ALL.iter().position(|map| *map == self.maps[&at]);
                self.write(destination, MAP_BASE + map.expect("every map is listed") as u64);
                return Next::SkipsOne;
            }
            code::TO_BIG_ENDIAN => {
                let low = u32::try_from(self.read(destination) & 0xffff_ffff);
                self.write(destination, u64::from(low.expect("32 bits").to_be()));
            }
            code::ATOMIC => {
                let address = self.address(destination, offset);
                let sum = number(&self.load(address, 8)).wrapping_add(self.read(source));
                self.store(address, &sum.to_ne_bytes());
            }
            _ if code & !0x18 == code::LOAD => {
                let bytes = self.load(self.address(source, offset), width);
                self.write(destination, number(&bytes));
            }
            _ if code & !0x18 == code::STORE => {
                let bytes = self.read(source).to_le_bytes();
                self.store(self.address(destination, offset), &bytes[..width]);
            }
            _ if code & !0x18 == code::STORE_IMMEDIATE => {
                let bytes = value.to_le_bytes();
                self.store(self.address(destination, offset), &bytes[..width]);
            }
            _ if code & 7 == code::ALU64 => {
                let operand =
                    if code & code::FROM_REGISTER == 0 { value } else { self.read(source) };
                self.compute(code & 0xf0, destination, operand);
            }
            code::JUMP => return Next::Jumps,
            _ if code & 7 == code::JUMP => {
                if self.is_taken(code & 0xf0, destination, value) {
                    return Next::Jumps;
                }
            }
            _ => panic!("the assembler does not write code {code:#x}"),
        }
        Next::Follows
    }

    fn compute(&mut self, operation: u8, register: u8, operand: u64) {
        if operation == Operation::Move as u8 {
            return self.write(register, operand);
        }
        let left = self.read(register);
        let result = match operation {
            it if it == Operation::Add as u8 => left.wrapping_add(operand),
            it if it == Operation::Subtract as u8 => left.wrapping_sub(operand),
            it if it == Operation::And as u8 => left & operand,
            it if it == Operation::ShiftRight as u8 => left >> operand,
            it if it == Operation::Xor as u8 => left ^ operand,
            _ => panic!("the assembler does not write operation {operation:#x}"),
        };
        self.write(register, result);
    }

    fn is_taken(&self, condition: u8, register: u8, operand: u64) -> bool {
        let left = self.read(register);
        match condition {
            it if it == When::Equal as u8 => left == operand,
            it if it == When::NotEqual as u8 => left != operand,
            it if it == When::Less as u8 => left < operand,
            _ => panic!("the assembler does not write condition {condition:#x}"),
        }
    }

    fn call(&mut self, helper: i32) {
        let result = match helper {
            it if it == Helper::MapLookup as i32 => {
                let (map, key) = (self.map(1), self.key(1, 2));
                self.world.lookup(map, &key)
            }
            it if it == Helper::MapUpdate as i32 => {
                let (map, key) = (self.map(1), self.key(1, 2));
                let value = self.load(self.read(3), map.shape().value_bytes as usize);
                let flags = self.read(4);
                if self.world.update(map, &key, &value, flags) { 0 } else { u64::MAX }
            }
            it if it == Helper::CurrentPidTgid as i32 => (41 << 32) + 42,
            it if it == Helper::CurrentComm as i32 => {
                assert_eq!(self.read(2), 16);
                self.store(self.read(1), b"tester\0\0\0\0\0\0\0\0\0\0");
                0
            }
            it if it == Helper::CurrentCgroupId as i32 => {
                *self.world.lineage.last().expect("a process has a cgroup")
            }
            it if it == Helper::CurrentAncestorCgroupId as i32 => {
                let level = usize::try_from(self.read(1)).expect("a level");
                self.world.lineage.get(level).copied().unwrap_or(0)
            }
            it if it == Helper::KtimeGetBootNs as i32 => self.world.now_ns,
            it if it == Helper::RingbufOutput as i32 => {
                assert_eq!((self.map(1), self.read(4)), (Map::Denials, 0));
                let bytes = usize::try_from(self.read(3)).expect("a size");
                let record = self.load(self.read(2), bytes);
                let fits = self.world.records.len() < self.world.records_max;
                self.world.records.extend(fits.then_some(record));
                if fits { 0 } else { u64::MAX }
            }
            _ => panic!("the program does not call {helper}"),
        };
        // A call spoils its arguments.
        self.registers[1..=5].fill(None);
        self.write(0, result);
    }

    fn map(&self, register: u8) -> Map {
        let index = self.read(register).checked_sub(MAP_BASE).expect("a map");
        Map::ALL[usize::try_from(index).expect("a map")]
    }

    fn key(&self, map: u8, key: u8) -> Vec<u8> {
        self.load(self.read(key), self.map(map).shape().key_bytes as usize)
    }

    fn read(&self, register: u8) -> u64 {
        self.registers[usize::from(register)].expect("a register is written before it is read")
    }

    fn write(&mut self, register: u8, value: u64) {
        assert_ne!(register, 10, "the frame pointer is read-only");
        self.registers[usize::from(register)] = Some(value);
    }

    fn address(&self, register: u8, offset: i16) -> u64 {
        self.read(register).wrapping_add_signed(i64::from(offset))
    }

    fn load(&self, address: u64, bytes: usize) -> Vec<u8> {
        let (base, at) = (address >> 32 << 32, (address & 0xffff_ffff) as usize);
        match base {
            CTX_BASE => self.context[at..at + bytes].to_vec(),
            STACK_BASE => {
                let written = |byte: &Option<u8>| byte.expect("the stack is written before read");
                self.stack[at..at + bytes].iter().map(written).collect()
            }
            _ => {
                let at = (at as u64 % VALUE_SPAN) as usize;
                self.world.values[value_index(address)][at..at + bytes].to_vec()
            }
        }
    }

    fn store(&mut self, address: u64, bytes: &[u8]) {
        let (base, at) = (address >> 32 << 32, (address & 0xffff_ffff) as usize);
        assert!(address.is_multiple_of(bytes.len().min(8) as u64), "stores are aligned");
        match base {
            CTX_BASE => panic!("the context is read-only"),
            STACK_BASE => {
                for (place, byte) in self.stack[at..at + bytes.len()].iter_mut().zip(bytes) {
                    *place = Some(*byte);
                }
            }
            _ => {
                let at = (at as u64 % VALUE_SPAN) as usize;
                self.world.values[value_index(address)][at..at + bytes.len()]
                    .copy_from_slice(bytes);
            }
        }
    }
}

/// A number of 4 or 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}
