//! A small assembler of BPF: the instructions that the gate needs, and labels to jump to.
//!
//! Encoding as in the kernel's `Documentation/bpf/standardization/instruction-set.rst`.
//! It knows no registers' types and proves nothing: that is the verifier's business.

use crate::layout::Map;

/// A register. `R0` holds what a call gives back, `R1` to `R5` its arguments, which a call
/// spoils; `R6` to `R9` last; `R10` points to the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(dead_code, reason = "the gate needs no fifth argument")]
pub(crate) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// What the kernel does for a program, by its number in `linux/bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    CurrentPidTgid = 14,
    CurrentComm = 16,
    CurrentCgroupId = 80,
    CurrentAncestorCgroupId = 123,
    KtimeGetBootNs = 125,
    RingbufOutput = 130,
}

/// How much a load or store moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Bytes4 = 0x00,
    Bytes8 = 0x18,
}

/// When a jump is taken; all compare without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Equal = 0x10,
    NotEqual = 0x50,
    Less = 0xa0,
}

/// An operation on 64 bits of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    And = 0x50,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// Classes and modes of the instruction set, as far as they are used.
pub(crate) mod code {
    pub(crate) const LOAD_WIDE: u8 = 0x18;
    pub(crate) const LOAD: u8 = 0x61; // LDX | MEM
    pub(crate) const STORE_IMMEDIATE: u8 = 0x62; // ST | MEM
    pub(crate) const STORE: u8 = 0x63; // STX | MEM
    pub(crate) const ATOMIC: u8 = 0xdb; // STX | ATOMIC | DW
    pub(crate) const JUMP: u8 = 0x05;
    pub(crate) const ALU64: u8 = 0x07;
    pub(crate) const FROM_REGISTER: u8 = 0x08;
    pub(crate) const TO_BIG_ENDIAN: u8 = 0xdc; // ALU | END | TO_BE
    pub(crate) const CALL: u8 = 0x85;
    pub(crate) const EXIT: u8 = 0x95;
    /// `BPF_PSEUDO_MAP_FD`: the immediate of a wide load is the descriptor of a map.
    pub(crate) const SOURCE_IS_MAP: u8 = 1;
}

/// One instruction of 8 bytes. A wide load takes two, the second of code 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) destination: u8,
    pub(crate) source: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

impl Instruction {
    /// The bytes that the kernel reads (`struct bpf_insn`).
    pub(crate) fn encode(self) -> [u8; 8] {
        let registers = if cfg!(target_endian = "little") {
            self.source << 4 | self.destination
        } else {
            self.destination << 4 | self.source
        };
        let [offset_0, offset_1] = self.offset.to_ne_bytes();
        let [a, b, c, d] = self.immediate.to_ne_bytes();
        [self.code, registers, offset_0, offset_1, a, b, c, d]
    }
}

/// A finished program. The wide loads at the places in `maps` name a map; their immediate
/// is filled in when the map has a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) maps: Vec<(usize, Map)>,
}

/// A place in the program to jump to; bound once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    instructions: Vec<Instruction>,
    maps: Vec<(usize, Map)>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The next instruction is where `label` points to.
    pub(crate) fn bind(&mut self, label: Label) {
        let previous = self.labels[label.0].replace(self.instructions.len());
        assert!(previous.is_none(), "a label is bound once");
    }

    pub(crate) fn set(&mut self, register: Register, value: i32) {
        self.compute(Operation::Move, register, value);
    }

    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.compute_with(Operation::Move, to, from);
    }

    /// `register = register operation value`; the value's sign is extended.
    pub(crate) fn compute(&mut self, operation: Operation, register: Register, value: i32) {
        let code = code::ALU64 | operation as u8;
        self.push(Instruction {
            code,
            destination: register as u8,
            immediate: value,
            ..Instruction::default()
        });
    }

    /// `to = to operation from`.
    pub(crate) fn compute_with(&mut self, operation: Operation, to: Register, from: Register) {
        let code = code::ALU64 | code::FROM_REGISTER | operation as u8;
        self.push(Instruction {
            code,
            destination: to as u8,
            source: from as u8,
            ..Instruction::default()
        });
    }

    /// Turns the lower four bytes to big-endian order and clears the upper ones.
    pub(crate) fn swap_to_big_endian(&mut self, register: Register) {
        self.push(Instruction {
            code: code::TO_BIG_ENDIAN,
            destination: register as u8,
            immediate: 32,
            ..Instruction::default()
        });
    }

    pub(crate) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        let code = code::LOAD | width as u8;
        self.push(Instruction {
            code,
            destination: to as u8,
            source: from as u8,
            offset,
            immediate: 0,
        });
    }

    pub(crate) fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        let code = code::STORE | width as u8;
        self.push(Instruction {
            code,
            destination: to as u8,
            source: from as u8,
            offset,
            immediate: 0,
        });
    }

    pub(crate) fn store_value(&mut self, width: Width, to: Register, offset: i16, value: i32) {
        let code = code::STORE_IMMEDIATE | width as u8;
        self.push(Instruction { code, destination: to as u8, source: 0, offset, immediate: value });
    }

    /// Adds a register to 8 bytes in memory, as one step to all processors.
    pub(crate) fn add_to_memory(&mut self, to: Register, offset: i16, from: Register) {
        self.push(Instruction {
            code: code::ATOMIC,
            destination: to as u8,
            source: from as u8,
            offset,
            immediate: 0,
        });
    }

    pub(crate) fn load_map(&mut self, register: Register, map: Map) {
        self.maps.push((self.instructions.len(), map));
        self.push(Instruction {
            code: code::LOAD_WIDE,
            destination: register as u8,
            source: code::SOURCE_IS_MAP,
            ..Instruction::default()
        });
        self.push(Instruction::default());
    }

    pub(crate) fn jump(&mut self, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(Instruction { code: code::JUMP, ..Instruction::default() });
    }

    pub(crate) fn jump_if(&mut self, register: Register, when: When, value: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.push(Instruction {
            code: code::JUMP | when as u8,
            destination: register as u8,
            immediate: value,
            ..Instruction::default()
        });
    }

    pub(crate) fn call(&mut self, helper: Helper) {
        self.push(Instruction {
            code: code::CALL,
            immediate: helper as i32,
            ..Instruction::default()
        });
    }

    pub(crate) fn exit(&mut self) {
        self.push(Instruction { code: code::EXIT, ..Instruction::default() });
    }

    /// Resolves the labels.
    ///
    /// # Panics
    ///
    /// If a label is not bound or is too far: a mistake in this crate, not in any input.
    pub(crate) fn finish(mut self) -> Program {
        for (from, label) in self.jumps {
            let to = self.labels[label.0].expect("every label that is jumped to is bound");
            // Offsets count from the instruction behind the jump.
            let distance = to.cast_signed() - from.cast_signed() - 1;
            let offset = i16::try_from(distance).expect("the gate is far shorter than 32,768");
            self.instructions[from].offset = offset;
        }
        Program { instructions: self.instructions, maps: self.maps }
    }

    fn push(&mut self, instruction: Instruction) {
        self.instructions.push(instruction);
    }
}
