package network

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// exprs is a part of a rule: matches, then what is done.
type exprs []expr.Any

// writer adds chains and rules of one table to a batch.
type writer struct {
	c     *nftables.Conn
	table *nftables.Table
}

// base adds a chain of the kernel's that drops what it does not accept.
func (w writer) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	drop := nftables.ChainPolicyDrop
	return w.c.AddChain(&nftables.Chain{Name: name, Table: w.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &drop})
}

func (w writer) chain(name string) *nftables.Chain {
	return w.c.AddChain(&nftables.Chain{Name: name, Table: w.table})
}

func (w writer) rule(chain *nftables.Chain, parts ...exprs) {
	r := &nftables.Rule{Table: w.table, Chain: chain}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	w.c.AddRule(r)
}

const (
	register = unix.NFT_REG_1
	// Registers of 4 bytes, for keys made of several parts.
	word0, word1, word2 = unix.NFT_REG32_00, unix.NFT_REG32_01, unix.NFT_REG32_02
)

func equals(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data} }

// in and out match the interface, up to a final "*".
func in(name string) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}, ifname(name)}
}
func out(name string) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}, ifname(name)}
}

// notOut matches every other interface.
func notOut(name string) exprs {
	e := out(name)
	e[1].(*expr.Cmp).Op = expr.CmpOpNeq
	return e
}

func ifname(name string) expr.Any {
	if n := len(name) - 1; name[n] == '*' {
		return equals([]byte(name[:n]))
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return equals(data)
}

func proto(number byte) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equals([]byte{number})}
}

func payload(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
}

// linkHeader and netHeader compare bytes at an offset of a packet's header.
func linkHeader(offset uint32, data []byte) exprs {
	return exprs{payload(expr.PayloadBaseLLHeader, offset, uint32(len(data))), equals(data)}
}

func netHeader(offset uint32, data []byte) exprs {
	return exprs{payload(expr.PayloadBaseNetworkHeader, offset, uint32(len(data))), equals(data)}
}

func etherType(number uint16) exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: register}, equals(binaryutil.BigEndian.PutUint16(number))}
}

const destination = 16 // of the destination address in an IPv4 header

func daddr(addr []byte) exprs { return netHeader(destination, addr) }

func daddrIn(set string) exprs {
	return exprs{payload(expr.PayloadBaseNetworkHeader, destination, 4), &expr.Lookup{SourceRegister: register, SetName: set}}
}

func saddrIn(set string) exprs {
	return exprs{payload(expr.PayloadBaseNetworkHeader, 12, 4), &expr.Lookup{SourceRegister: register, SetName: set}}
}

func dport(port uint16) exprs {
	return exprs{payload(expr.PayloadBaseTransportHeader, 2, 2), equals(binaryutil.BigEndian.PutUint16(port))}
}

func dportIn(set string) exprs {
	return exprs{payload(expr.PayloadBaseTransportHeader, 2, 2), &expr.Lookup{SourceRegister: register, SetName: set}}
}

func ctState(bits uint32) exprs {
	return exprs{
		&expr.Ct{Key: expr.CtKeySTATE, Register: register},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: native(0)},
	}
}

func ctMark(mark uint32) exprs {
	return exprs{&expr.Ct{Key: expr.CtKeyMARK, Register: register}, equals(native(mark))}
}

func setCtMark(mark uint32) exprs {
	return exprs{&expr.Immediate{Register: register, Data: native(mark)}, &expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true}}
}

func native(n uint32) []byte {
	b := make([]byte, 4)
	binary.NativeEndian.PutUint32(b, n)
	return b
}

func accept() exprs { return exprs{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() exprs   { return exprs{&expr.Verdict{Kind: expr.VerdictDrop}} }

// jump goes to a chain that decides.
func jump(chain string) exprs { return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }

func count(counter string) exprs {
	return exprs{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}
}

func reject(kind uint32, code byte) exprs { return exprs{&expr.Reject{Type: kind, Code: code}} }

// protoPort loads what remember stores of TCP and UDP, whose ports are at the same place.
func protoPort() exprs {
	return exprs{
		&expr.Payload{DestRegister: word2, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Payload{DestRegister: word0, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word1},
	}
}

// protoNoPort is protoPort for protocols without ports.
func protoNoPort() exprs {
	return exprs{
		&expr.Payload{DestRegister: word0, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: 4},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word1},
		&expr.Immediate{Register: word2, Data: make([]byte, 4)},
	}
}

func remember() exprs {
	return exprs{&expr.Dynset{SrcRegKey: word0, SetName: setRefusals, SetID: 6, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}}}
}
