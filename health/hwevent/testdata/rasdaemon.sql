-- The tables are those that rasdaemon 0.6.8 makes; the last is of later
-- versions. The events follow what it records.
CREATE TABLE mc_event (id INTEGER PRIMARY KEY, timestamp TEXT, err_count INTEGER, err_type TEXT, err_msg TEXT, label TEXT, mc INTEGER, top_layer INTEGER, middle_layer INTEGER, lower_layer INTEGER, address INTEGER, grain INTEGER, syndrome INTEGER, driver_detail TEXT);
CREATE TABLE aer_event (id INTEGER PRIMARY KEY, timestamp TEXT, dev_name TEXT, err_type TEXT, err_msg TEXT);
CREATE TABLE extlog_event (id INTEGER PRIMARY KEY, timestamp TEXT, etype INTEGER, error_count INTEGER, severity INTEGER, address INTEGER, fru_id BLOB, fru_text TEXT, cper_data BLOB);
CREATE TABLE mce_record (id INTEGER PRIMARY KEY, timestamp TEXT, mcgcap INTEGER, mcgstatus INTEGER, status INTEGER, addr INTEGER, misc INTEGER, ip INTEGER, tsc INTEGER, walltime INTEGER, cpu INTEGER, cpuid INTEGER, apicid INTEGER, socketid INTEGER, cs INTEGER, bank INTEGER, cpuvendor INTEGER, bank_name TEXT, error_msg TEXT, mcgstatus_msg TEXT, mcistatus_msg TEXT, mcastatus_msg TEXT, user_action TEXT, mc_location TEXT);
CREATE TABLE memory_failure_event (id INTEGER PRIMARY KEY, timestamp TEXT, pfn TEXT, page_type TEXT, action_result TEXT);
INSERT INTO mc_event VALUES (1, '2026-11-20 14:09:28 +0000', 3, 'Corrected', 'memory read error', 'CPU_SrcID#0_MC#0_Chan#0_DIMM#0', 0, 0, 0, -1, 74565632, 5, 0, 'area:DRAM');
INSERT INTO mc_event VALUES (2, '2026-11-20 14:09:29 +0000', 1, 'Corrected', 'memory read error', 'CPU_SrcID#0_MC#0_Chan#0_DIMM#0', 0, 0, 0, -1, 74565700, 5, 0, 'area:DRAM');
INSERT INTO mc_event VALUES (3, '2026-11-20 14:09:30 +0000', 1, 'Corrected', 'memory read error', 'CPU_SrcID#0_MC#0_Chan#0_DIMM#0', 0, 0, 0, -1, 99565632, 5, 0, 'area:DRAM');
INSERT INTO mc_event VALUES (4, '2026-11-20 14:09:31 +0000', 1, 'Uncorrected', 'memory scrubbing error', '', 1, 0, 0, -1, 0, 5, 0, '');
INSERT INTO mc_event VALUES (5, '2026-11-20 14:09:32 +0000', 1, 'Info', 'nothing', 'x', 1, 0, 0, -1, 0, 5, 0, '');
INSERT INTO mce_record (id, timestamp, status, addr, cpu, bank, error_msg) VALUES (1, '2026-11-20 14:09:28 +0000', -7205759403792727920, 305418240, 0, 7, 'memory read');
INSERT INTO mce_record (id, timestamp, status, addr, cpu, bank, error_msg) VALUES (2, '2026-11-20 14:09:28 +0000', -4827858800541171334, 0, 12, 9, 'fatal');
INSERT INTO aer_event VALUES (1, '2026-11-20 14:09:28 +0000', '0000:3b:00.0', 'Corrected', 'Receiver Error');
INSERT INTO aer_event VALUES (2, '2026-11-20 14:09:28 +0000', '0000:3b:00.0', 'Uncorrected (Non-Fatal)', 'Completion Timeout');
INSERT INTO extlog_event (id, timestamp, severity, error_count) VALUES (1, '2026-11-20 14:09:28 +0000', 2, 1);
INSERT INTO memory_failure_event VALUES (1, '2026-11-20 14:09:28 +0000', '0x12345', 'dirty LRU page', 'Recovered');
