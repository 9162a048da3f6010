package sandboxd

import (
	"bytes"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// metrics is the body of GET /metrics. Sizes are in bytes unless their name says MiB.
type metrics struct {
	Timestamp  int64   `json:"ts"` // Unix seconds
	CPUCount   int     `json:"cpu_count"`
	CPUUsed    float64 `json:"cpu_used_pct"` // of all CPUs, since the previous request
	MemTotal   uint64  `json:"mem_total"`
	MemUsed    uint64  `json:"mem_used"`
	MemCache   uint64  `json:"mem_cache"`
	MemTotalMB uint64  `json:"mem_total_mib"`
	MemUsedMB  uint64  `json:"mem_used_mib"`
	DiskUsed   uint64  `json:"disk_used"`
	DiskTotal  uint64  `json:"disk_total"`
}

func (s *Server) getMetrics(w http.ResponseWriter, _ *http.Request) error {
	m := metrics{Timestamp: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsed: s.cpu.sample()}
	memory, err := readMeminfo()
	if err != nil {
		return errorf(connect.CodeInternal, "metrics: %w", err)
	}
	m.MemTotal = memory["MemTotal"]
	m.MemCache = memory["Cached"]
	m.MemUsed = m.MemTotal - min(m.MemTotal, memory["MemAvailable"])
	m.MemTotalMB, m.MemUsedMB = m.MemTotal>>20, m.MemUsed>>20
	var disk unix.Statfs_t
	if err := unix.Statfs("/", &disk); err != nil {
		return errorf(connect.CodeInternal, "metrics: file system: %w", err)
	}
	m.DiskTotal = disk.Blocks * uint64(disk.Bsize)
	m.DiskUsed = m.DiskTotal - disk.Bfree*uint64(disk.Bsize)
	writeJSON(w, http.StatusOK, m)
	return nil
}

// readMeminfo returns the values of /proc/meminfo in bytes.
func readMeminfo() (map[string]uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	values := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if kib, err := strconv.ParseUint(number, 10, 64); err == nil {
			values[name] = kib << 10
		}
	}
	return values, nil
}

// cpuMeter measures how busy the CPUs were since it was last asked.
type cpuMeter struct {
	mu          sync.Mutex
	busy, total uint64
}

// sample returns percent of all CPU time, rounded to two digits.
func (m *cpuMeter) sample() float64 {
	busy, total := cpuTimes()
	m.mu.Lock()
	defer m.mu.Unlock()
	busySince, totalSince := busy-m.busy, total-m.total
	m.busy, m.total = busy, total
	if totalSince == 0 || busySince > totalSince {
		return 0
	}
	return float64(busySince*10000/totalSince) / 100
}

// cpuTimes sums the first line of /proc/stat (proc_stat(5)): user, nice, system, idle,
// iowait, irq, softirq, steal.
func cpuTimes() (busy, total uint64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	for i, field := range strings.Fields(string(line)) {
		if i == 0 || i > 8 {
			continue
		}
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, 0
		}
		total += n
		if i != 4 && i != 5 {
			busy += n
		}
	}
	return busy, total
}
